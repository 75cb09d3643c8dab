"""How well a model predicts plain text, in bits per byte: a measure that doesn't depend on the tokenizer.

    bits per byte = Σ −log2 p(token | tokens before it) / Σ UTF-8 bytes of the texts

A loss per token can't be compared between models whose tokens have different lengths; this can (Gao et al. 2020, "The Pile",
arXiv:2101.00027, §3.1). What is counted:

- Each text is a document as in pretraining: it begins after the tokenizer's `document_id`, which is given and not predicted.
- The end token that would close it is not predicted either. It stands for no byte, as in published numbers; and models differ
  in how they end a text (a chat model ends replies, llama2.c's were trained with a beginning only), which is another question.
- A text that can be cut into tokens in several ways is scored by the tokenizer's own way alone, so that the number is an upper
  bound of what the model needs. The bytes are the text's, whatever the tokenizer adds (llama2.c: a space in front).

A text longer than the context is read in windows, each half a context further than the one before. The first predicts all its
tokens, each of the others those of its second half: no token is predicted twice, and each from half a context at least, or
from all that stands before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.data.batching import Example, micro_batches
from mini_chat_gpt.evaluation.confidence import SEED, bootstrap, ratio
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

MAX_BYTES = 500_000  # of real stories: an interval of about ± 2 %
# Tokens of a batch. More fall out of a processor's cache; a GPU wants more. With a large vocabulary the logits limit it.
TOKENS_ON_CPU, TOKENS = 2048, 32768
MOST_LOGITS_ON_CPU, MOST_LOGITS = 1 << 26, 1 << 29
SORTED_BATCHES = 16  # batches whose windows are sorted by length, so that attention wastes little


@dataclass(frozen=True)
class BitsPerByte:
    """How well the texts were predicted, with a 95 % interval by a bootstrap over texts."""

    bits_per_byte: float
    low: float
    high: float
    loss_per_token: float  # nats
    n_bytes: int
    n_tokens: int  # predicted
    n_texts: int
    per_text: np.ndarray = field(repr=False, compare=False)
    """(n_texts,) bits of each text / mean bytes of a text, so that its mean is `bits_per_byte`.

    Of two models on the same texts, `intervals.paired(a.per_text, b.per_text)` tells whether they differ.
    """

    def as_json(self) -> dict[str, Any]:
        """The numbers without those of each text."""
        return {name: value for name, value in vars(self).items() if name != "per_text"}


def bits_per_byte(
    model: GPT,
    tokenizer: ChatTokenizer,
    texts: Iterable[str],
    max_bytes: int = MAX_BYTES,
    progress: Callable[[int, int], None] | None = None,
    seed: int = SEED,
) -> BitsPerByte:
    """Bits per byte on the first texts, whole ones, until `max_bytes` is reached: the same texts for every tokenizer.

    Lone surrogates count as the U+FFFD that they are encoded as. `progress` is called with the bytes done and all bytes.
    `seed` is the bootstrap's. The model is read in its own precision (under autocast in that) and left in the mode that it was in.
    Raises UserError where there is no text.
    """
    chosen = _first(texts, max_bytes)
    sizes = np.array([len(well_formed(text).encode()) for text in chosen])
    nats, counts = np.zeros(len(chosen)), np.zeros(len(chosen), dtype=np.int64)
    at_once, training = tokens_at_once(model), model.training
    model.eval()
    try:
        for windows, done in _portions(chosen, tokenizer, model.config.context_length, SORTED_BATCHES * at_once):
            _add_losses(model, windows, at_once, nats, counts)
            if progress is not None:
                progress(int(sizes[:done].sum()), int(sizes.sum()))
    finally:
        model.train(training)
    bits = nats / math.log(2)
    low, high = bootstrap(np.stack([bits, sizes], axis=1), ratio, seed=seed)
    return BitsPerByte(
        bits_per_byte=float(bits.sum() / sizes.sum()),
        low=low,
        high=high,
        loss_per_token=float(nats.sum() / counts.sum()),
        n_bytes=int(sizes.sum()),
        n_tokens=int(counts.sum()),
        n_texts=len(chosen),
        per_text=bits / sizes.mean(),
    )


def windows_of(ids: Sequence[int], context: int, kind: str = "text") -> Iterator[Example]:
    """The windows of a document, ids (n,) with its leading separator, as examples of at most `context` ids.

    context 6, so that windows begin 3 further each time:      s a b c d e f g h i
                                              predicted           a b c d e
                                                                             f g h
                                                                                   i
    """
    array, step = np.array(ids, dtype=np.int32), context // 2
    for start in range(0, max(1, len(array) - (context - step)), step):
        part = array[start : start + context]
        trained = np.ones(len(part), dtype=bool)
        trained[: 1 if start == 0 else context - step] = False
        yield Example(part, trained, weight=1.0, kind=kind)


def tokens_at_once(model: GPT) -> int:
    """Tokens of a batch that pay, and whose logits there is room for."""
    on_cpu = model.device.type == "cpu"
    tokens, logits = (TOKENS_ON_CPU, MOST_LOGITS_ON_CPU) if on_cpu else (TOKENS, MOST_LOGITS)
    return min(tokens, max(1, logits // model.config.vocab_size))


def _first(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Texts that aren't empty, until they have `max_bytes` bytes; the last one is whole."""
    chosen, size = [], 0
    for text in texts:
        if size >= max_bytes:
            break
        if text:
            chosen.append(text)
            size += len(well_formed(text).encode())
    if not chosen:
        raise UserError("There is no text to predict; name a file with stories, and take at least one byte of it.")
    return chosen


def _portions(
    texts: Sequence[str], tokenizer: ChatTokenizer, context: int, n_tokens: int
) -> Iterator[tuple[list[Example], int]]:
    """Windows of about `n_tokens` tokens at a time, and how many texts are done with them. Their kind is the text's number."""
    windows: list[Example] = []
    size = 0
    for number, text in enumerate(texts):
        for window in windows_of([tokenizer.document_id, *tokenizer.encode(text)], context, str(number)):
            windows.append(window)
            size += len(window.ids)
        if size >= n_tokens or number == len(texts) - 1:
            yield windows, number + 1
            windows, size = [], 0


@torch.no_grad()
def _add_losses(model: GPT, windows: Sequence[Example], at_once: int, nats: np.ndarray, counts: np.ndarray) -> None:
    """Add the loss and the number of the windows' targets to those of their texts, (texts,) each."""
    for batch in micro_batches(windows, len(windows), at_once):
        losses = model(batch.to(model.device)).losses.double().cpu().numpy()
        numbers = np.array([int(name) for name in batch.kind_names])[batch.kinds.numpy()]
        np.add.at(nats, numbers, losses)
        np.add.at(counts, numbers, 1)
