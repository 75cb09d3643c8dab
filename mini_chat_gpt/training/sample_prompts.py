"""Prompts that each evaluation shows replies to. They are checked before the first step, so that none can fail hours later."""

from __future__ import annotations

from collections.abc import Sequence

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import short
from mini_chat_gpt.generation.text import Prompt, prompt_ids
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


def check_prompts(prompts: Sequence[str], tokenizer: ChatTokenizer, context: int, setting: str) -> None:
    """Raise UserError, which names the setting, if a model with this context can't reply to one of the user's own prompts."""
    for number, prompt in enumerate(prompts, 1):
        if problem := _problem(prompt, tokenizer, context):
            which = f"prompt {number} of {len(prompts)} " if len(prompts) > 1 else ""
            raise UserError(f"{setting}: {which}({short(prompt)}) {problem}; change it or leave it out.")


def can_reply(prompt: Prompt, tokenizer: ChatTokenizer, context: int) -> bool:
    """Whether the prompt leaves room for a reply in the context."""
    return not _problem(prompt, tokenizer, context)


def _problem(prompt: Prompt, tokenizer: ChatTokenizer, context: int) -> str:
    try:
        n_tokens = len(prompt_ids(tokenizer, prompt))
    except UserError:  # a chat format has no message without text
        return "has no text"
    if n_tokens >= context:
        return f"has {n_tokens} tokens, but the model's context holds {context}, prompt and reply together"
    return ""
