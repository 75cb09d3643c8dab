"""The formats of the sample templates, the same templates in `transformers`, and texts for conversations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from chat_template_samples import BEGIN, CONTROL, SUPPORTED, SmallTokenizer, small_tokenizer
from hypothesis import strategies as st

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.tokenizer import chat_templates
from mini_chat_gpt.tokenizer.chat_templates import TemplateFormat

PHI3_STRIPS = (
    ("<|user|>", False, True),
    ("<|assistant|>", False, True),
    ("<|end|>", False, True),
    ("<|system|>", True, True),
)
FORMATS = {**SUPPORTED, "ours": chat_templates.CHATML}
PLAIN = ("zephyr", "mistral")


@lru_cache
def made(name: str) -> tuple[TemplateFormat, SmallTokenizer]:
    """A format with its tokenizer."""
    strips = PHI3_STRIPS if name == "phi3" else ()
    tokenizer = small_tokenizer(plain_roles=name in PLAIN, strips=strips)
    flags = {token: (left, right) for token, left, right in strips}
    return TemplateFormat.from_source(
        FORMATS[name], tokenizer.control, BEGIN.get(name, "<s>"), "</s>", flags
    ), tokenizer


@lru_cache
def hugging_face(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    _, tokenizer = made(name)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.full, bos_token=BEGIN.get(name, "<s>"), eos_token="</s>", chat_template=FORMATS[name]
    )


def applied(name: str, messages: Sequence[Message], prompt: bool, tokenize: bool = True, **options: Any) -> Any:
    """What `apply_chat_template` makes of the messages. options: tools, enable_thinking."""
    chat = [
        {"role": message.role, "content": message.content}
        | ({} if message.reasoning is None else {"reasoning_content": message.reasoning})
        | ({} if message.tool_calls is None else {"tool_calls": list(message.tool_calls)})
        | ({} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id})
        for message in messages
    ]
    return hugging_face(name).apply_chat_template(
        chat, add_generation_prompt=prompt, tokenize=tokenize, return_dict=False, **options
    )


def roles_of(n_turns: int, system: bool, prompt: bool) -> list[str]:
    roles = ["system"] * system + ["user", "assistant"] * n_turns
    return roles[:-1] if prompt else roles


def conversation(roles: Sequence[str], contents: Sequence[str]) -> list[Message]:
    return [Message(role, content) for role, content in zip(roles, contents, strict=False)]


pieces = st.sampled_from(
    [
        "Hi",
        " ",
        "\n",
        "\n\n",
        "Lily's",
        "  ",
        "\t",
        "ü",
        "🙂",
        "12",
        "</",
        "<|",
        "{{ x }}",
        "\x1c",
        "\xa0",
        "<s",
        '"',
        "\\",
        "[INST",
    ]
)
honest = (
    st.lists(st.one_of(pieces, st.text(max_size=4)), min_size=1, max_size=6)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "ignore").decode())
    .filter(lambda text: text.strip() and not any(name in text for name in CONTROL))
)
"""Texts that spell no control token."""
HOSTILE = [
    *CONTROL,
    *("<|im_", "start|>", "user\n", "assistant\n", "{{ bos_token }}", "{% for x in y %}", "{# no #}"),
    *("\ue000", "\uf8ff", "\U000f0000", "\x00", "\n", " ", "\u2028", "\u3000", "\x1c", "hello", "Slot(0)", "system"),
    *(
        "<think>\nx\n</think>\n\n",
        '"}\n</tool_call>',
        '", "arguments": {}}',
        "\\",
        '"',
        "[TOOL_",
        "CALLS]",
        "</thi",
        "nk>",
    ),
]
"""Pieces of texts that try to be more than text."""
