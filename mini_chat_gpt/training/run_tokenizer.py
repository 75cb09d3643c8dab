"""The tokenizer of a fine-tuning run before there is one, for `inspect`: that of its base model, or one trained on its data."""

from __future__ import annotations

from pathlib import Path

from mini_chat_gpt.checkpoints.find import newest_checkpoint
from mini_chat_gpt.checkpoints.load import find_source, load_named_tokenizer, load_tokenizer
from mini_chat_gpt.config import Config
from mini_chat_gpt.tokenizer.chat_setup import set_chat_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.sft_data import texts_for_tokenizer


def tokenizer_for(config: Config, name: str | None = None) -> tuple[ChatTokenizer, int, str]:
    """Return (tokenizer, context length, a sentence about both).

    `name` selects a tokenizer. Otherwise those of the base model that the run would use are taken. Without a base model a tokenizer
    is trained on the data.
    """
    base = None if name else config.sft.pretrained_checkpoint or newest_checkpoint(base=True)
    context = config.data.seq_len
    if name is not None:
        tokenizer = load_named_tokenizer(name)
        note = f"Tokenizer: {Path(name).name} (--tokenizer); the context is data.seq_len."
    elif base is not None:
        tokenizer, shape = load_tokenizer(find_source(Path(base), weights=False))
        context = shape.context_length
        note = f"Tokenizer and context: those of {base}."
    else:
        tokenizer = ChatTokenizer.train(texts_for_tokenizer(config), config.pretrain.tokenizer_vocab_size)
        note = (
            f"There is no base model under runs/: a tokenizer with {tokenizer.vocab_size:,} entries was trained on these "
            "texts. The counts of a run with another tokenizer differ; choose one with --tokenizer."
        )
    set_chat_format(tokenizer, config.sft.chat_format, config.data.system_message)  # as fine-tuning does
    return tokenizer, context, note
