"""Bits per byte on plain text: a measure of a language model that does not depend on its tokenizer.

    bits per byte = Σ −log2 p(token | previous tokens) / Σ UTF-8 bytes of the texts

A loss per token can't be compared between models whose tokens have different lengths; bits per byte can (Gao et al. 2020, "The
Pile", arXiv:2101.00027, §3.1). What counts:

- Each text is a document as in pretraining: it follows the tokenizer's `document_id`, which is given and not predicted.
- The end token after the text is not predicted either. It represents no byte, as in published numbers, and models end texts in
  different ways (a chat model ends replies; llama2.c models were trained with a start token only).
- A text that can be tokenized in several ways is scored for the tokenizer's own tokenization only, so the number is an upper bound.
  The bytes are those of the text, even if the tokenizer adds some (llama2.c prepends a space).

A text longer than the context is read in overlapping windows, each half a context after the previous one. The first window predicts
all of its tokens, each later window those of its second half. So every token is predicted once, from at least half a context or
from everything before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mini_chat_gpt.common.device import pick_reply_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.data.batching import Example, micro_batches
from mini_chat_gpt.evaluation.confidence import SEED, bootstrap, ratio
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

MAX_TEXT = 1_000_000  # characters of one text; the rest of a longer one is not predicted
MAX_BYTES = 500_000  # for real stories this gives an interval of about ± 2 %
# Tokens of a batch. On a CPU more don't fit into the cache; a GPU needs more. With a large vocabulary the logits are the limit.
TOKENS_ON_CPU, TOKENS = 2048, 32768
MAX_LOGITS_ON_CPU, MAX_LOGITS = 1 << 26, 1 << 29
SORTED_BATCHES = 16  # batches whose windows are sorted by length, so that attention does little work for padding


@dataclass(frozen=True)
class BitsPerByte:
    """The result, with a 95 % interval from a bootstrap over texts."""

    bits_per_byte: float
    low: float
    high: float
    loss_per_token: float  # nats
    n_bytes: int
    n_tokens: int  # predicted
    n_texts: int
    per_text: np.ndarray = field(repr=False, compare=False)
    """(n_texts,) bits of each text / mean bytes per text, so that the mean is `bits_per_byte`.

    `confidence.paired(a.per_text, b.per_text)` compares two models on the same texts.
    """

    def as_json(self) -> dict[str, Any]:
        """All numbers except `per_text`."""
        return {name: value for name, value in vars(self).items() if name != "per_text"}


def bits_per_byte(
    model: GPT,
    tokenizer: ChatTokenizer,
    texts: Iterable[str],
    max_bytes: int = MAX_BYTES,
    progress: Callable[[int, int], None] | None = None,
    seed: int = SEED,
) -> BitsPerByte:
    """Bits per byte on the first texts, as complete texts, until `max_bytes` is reached: the same texts for every tokenizer.

    A lone surrogate counts as the U+FFFD that replaces it. `progress` is called with (bytes done, all bytes). `seed` is that of the
    bootstrap. The model runs in its own precision (or in that of autocast) and keeps its mode. Raises UserError if there is no text.
    """
    chosen = _first(texts, max_bytes)
    sizes = np.array([len(well_formed(text).encode()) for text in chosen])
    nats, counts = np.zeros(len(chosen)), np.zeros(len(chosen), dtype=np.int64)
    batch_tokens, training = tokens_per_batch(model), model.training
    model.eval()
    try:
        for windows, done in _portions(chosen, tokenizer, model.config.context_length, SORTED_BATCHES * batch_tokens):
            add_losses(model, windows, batch_tokens, nats, counts)
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

    With a context of 6, each window begins 3 ids after the previous one:      s a b c d e f g h i
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


def tokens_per_batch(model: GPT) -> int:
    """A batch size in tokens that is efficient and whose logits fit into memory."""
    on_cpu = model.device.type == "cpu"
    tokens, logits = (TOKENS_ON_CPU, MAX_LOGITS_ON_CPU) if on_cpu else (TOKENS, MAX_LOGITS)
    return min(tokens, max(1, logits // model.config.vocab_size))


def _first(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Nonempty texts until they have `max_bytes` bytes in total; the last one is complete, unless it is a whole book."""
    chosen, size = [], 0
    for text in texts:
        if size >= max_bytes:
            break
        if text := text[: max(max_bytes, MAX_TEXT)]:
            chosen.append(text)
            size += len(well_formed(text).encode())
    if not chosen:
        raise UserError("There is no text to predict; choose a file with stories, and at least one byte of it.")
    return chosen


def _portions(
    texts: Sequence[str], tokenizer: ChatTokenizer, context: int, n_tokens: int
) -> Iterator[tuple[list[Example], int]]:
    """(windows with about `n_tokens` tokens, number of texts done after them). The kind of a window is the number of its text."""
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
def add_losses(model: GPT, windows: Sequence[Example], batch_tokens: int, nats: np.ndarray, counts: np.ndarray) -> None:
    """Add the losses and the number of predicted tokens of the windows to `nats` and `counts`, both (texts,)."""
    for batch in micro_batches(windows, len(windows), batch_tokens):
        with pick_reply_precision(model.device).autocast(model.device):
            losses = model(batch.to(model.device)).losses[: batch.n_targets].double().cpu().numpy()
        numbers = np.array([int(name) for name in batch.kind_names])[batch.kinds[: batch.n_targets].numpy()]
        np.add.at(nats, numbers, losses)
        np.add.at(counts, numbers, 1)
