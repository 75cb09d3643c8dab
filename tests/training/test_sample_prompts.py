"""Sample prompts are checked before the first step, and showing samples or scoring tasks never ends a run."""

import pytest
from tiny import chat_tokenizer, tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.training.sample_prompts import can_reply, check_prompts


def test_a_prompt_longer_than_the_context_is_a_sentence_with_the_setting():
    tokenizer = tiny_tokenizer()
    n_tokens = 1 + len(tokenizer.encode("x" * 100))
    check_prompts(["x" * 100], tokenizer, n_tokens + 1, "pretrain.prompts")
    with pytest.raises(UserError) as raised:
        check_prompts(["short", "x" * 100], tokenizer, n_tokens, "pretrain.prompts")
    assert str(raised.value).startswith("pretrain.prompts: prompt 2 of 2 ('xxx")
    assert f"has {n_tokens} tokens, but the model's context holds {n_tokens}" in str(raised.value)
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "\u2003"])
def test_a_chat_model_cannot_reply_to_a_prompt_without_text_but_a_base_model_can(prompt):
    with pytest.raises(UserError, match=r"sft.prompts: \(.*\) has no text; change it or leave it out"):
        check_prompts([prompt], chat_tokenizer(), 64, "sft.prompts")
    check_prompts([prompt], tiny_tokenizer(), 64, "pretrain.prompts")


@pytest.mark.parametrize("prompt", ["a\ud800b", "\udcff", "\x00\x1b[2J", "<|endoftext|>", "\u200b", "😀" * 3])
def test_any_text_that_fits_can_be_answered(prompt):
    check_prompts([prompt], chat_tokenizer(), 64, "sft.prompts")
    check_prompts([prompt], tiny_tokenizer(), 64, "pretrain.prompts")


def test_the_default_system_message_counts():
    assert can_reply("Hello", chat_tokenizer(), 32)
    assert not can_reply("Hello", chat_tokenizer(default_system="x" * 40), 32)
