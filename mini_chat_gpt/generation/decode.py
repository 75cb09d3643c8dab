"""Decoding: token ids in, token ids out.

`decode` is the only decoding loop; chat, batches and streams all use it. Guarantees:

- A row does not depend on the rest of the batch. Padding is masked, and every row samples from its own random stream.
- A row ends at one of the tokenizer's stop ids. All other control tokens and the padding rows of the token table are
  suppressed, so a chat model can't start a turn of another role within its reply.
- `for_inference` chooses the fastest form of the model for the device. On a CPU every form gives the same replies; a
  `CPUInferenceModel` with 16- or 8-bit weights is an explicit choice. On a GPU products are computed in 16 bits, as in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from mini_chat_gpt.chat_format import format_of
from mini_chat_gpt.common.device import Precision, pick_reply_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel, can_decode
from mini_chat_gpt.generation.cpu_weights import FEW_ROWS, Weights
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel
from mini_chat_gpt.generation.prompt_lookup import PromptLookupDecoder, supports_prompt_lookup
from mini_chat_gpt.generation.sampling import NEG_INF, Sampling, next_ids
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.kv_cache import KVCache
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

FinishReason = Literal["stop", "length", "context"]
Model = GPT | CPUInferenceModel | MixedPrecisionModel
WeightsOption = Weights | Literal["auto"]

# Finished rows are removed from the batch once at most this fraction of the rows is still active. Removing rows copies
# the KV cache, which costs more than computing a few finished rows.
COMPACT_BELOW = 0.75

# Prompts are prefilled in chunks of about this many tokens. On a CPU a small chunk keeps the activations in the processor's
# cache, which makes a model of 1M parameters a sixth faster.
PREFILL_TOKENS_CPU, PREFILL_TOKENS = 1024, 16384

# Packing the weights for small batches takes about as long as it saves over 100 new tokens.
MIN_NEW_TOKENS_TO_PACK = 100


class Step(NamedTuple):
    """One new token of one row. If `finish` is set the row has ended. A stop token is not part of the reply."""

    row: int
    token_id: int
    finish: FinishReason | None


def for_inference(
    model: Model,
    n_rows: int = 1,
    n_new: int | None = None,
    weights: WeightsOption = "auto",
    precision: Precision | None = None,
) -> Model:
    """Return the fastest form of the model for batches of `n_rows` and replies of up to `n_new` tokens (None: long ones).

    `precision` is that of the matrix products, by default float32 on a CPU and the best one that a GPU supports. With float32,
    "auto" keeps the weights, and returns a model that has no other form (one in 16 bits) unchanged. Other `weights` raise
    UserError for a model that is not on a CPU.
    """
    if not isinstance(model, GPT):
        return model
    if weights == "auto":
        precision = precision or pick_reply_precision(model.device)
        if precision.dtype != torch.float32 and model.embed_tokens.weight.dtype == torch.float32:
            return MixedPrecisionModel(model, precision)
        worth_packing = n_rows <= FEW_ROWS and (n_new is None or n_new >= MIN_NEW_TOKENS_TO_PACK)
        return CPUInferenceModel(model, "float32", few_rows=worth_packing) if can_decode(model) else model
    return CPUInferenceModel(model, weights)


def cache_bytes_per_token(model: Model) -> int:
    """Bytes of keys and values of one token in the KV cache of a form of the model."""
    return model.make_cache(1, 1).table.nbytes


@torch.inference_mode()
def decode(
    model: Model,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    streams: Sequence[np.random.Generator],
    cache: KVCache | None = None,
    prompt_lookup: bool = True,
) -> Iterator[Step]:
    """Prefill the prompts (ids), then generate one token per active row and step, until all rows have ended.

    A `cache` that already holds the first `cache.lengths[row]` tokens of each prompt (at least one token fewer than the
    prompt) is continued; those tokens are not computed again. Rows that have ended are removed from the cache, except the
    last one. With `prompt_lookup`, a single row on a `CPUInferenceModel` uses prompt lookup decoding.
    """
    cache = cache or model.make_cache(len(prompts), max(map(len, prompts)) + sampling.max_new_tokens)
    # The head also predicts control tokens and padding rows; their logits are set to −inf in every step.
    suppressed = suppressed_tokens(tokenizer, model.config.vocab_size).to(model.device)
    # (B, V); only a repetition penalty needs to know the tokens so far.
    seen = _tokens_in_prompts(tokenizer, prompts, model) if sampling.repetition_penalty != 1 else None
    limits = [min(sampling.max_new_tokens, model.config.context_length - len(prompt)) for prompt in prompts]
    logits = prefill(model, [prompt[n:] for prompt, n in zip(prompts, cache.lengths, strict=True)], cache)
    decoder: Model | PromptLookupDecoder = model
    # Prompt lookup checks the model's own logits for close decisions. A repetition penalty changes them afterwards.
    if prompt_lookup and len(prompts) == 1 and seen is None and supports_prompt_lookup(model):
        decoder = PromptLookupDecoder(model, prompts[0], suppressed)
    rows, ended, n_new = list(range(len(prompts))), set[int](), 0
    while True:
        # Each row takes its random number from its own stream; greedy decoding needs none.
        uniforms = _uniforms(streams, rows) if sampling.temperature != 0 else None
        ids = next_ids(logits.index_fill_(1, suppressed, NEG_INF), sampling, seen, uniforms)  # (B,)
        n_new += 1
        for row, token_id in zip(rows, ids.tolist(), strict=True):
            if row in ended:  # still in the batch, but its tokens no longer count
                continue
            finish = _finish_reason(token_id in tokenizer.stop_ids, n_new, limits[row], sampling.max_new_tokens)
            if finish is not None:
                ended.add(row)
            yield Step(row, token_id, finish)
        active = [index for index, row in enumerate(rows) if row not in ended]
        if not active:
            return
        if len(active) <= COMPACT_BELOW * len(rows):
            cache.keep_rows(active)
            rows, ids = [rows[index] for index in active], ids[active]
            seen = seen[active] if seen is not None else None
        if seen is not None:
            seen.scatter_(1, ids[:, None], True)
        # An ended row that is still in the batch adds no token to its cache.
        logits = decoder.next_logits(ids[:, None], cache, [int(row not in ended) for row in rows])


def _finish_reason(stopped: bool, n_new: int, limit: int, max_new_tokens: int) -> FinishReason | None:
    """Why a row ends after its `n_new`-th token, or None if it continues."""
    if stopped:
        return "stop"
    if n_new == limit:
        return "length" if n_new == max_new_tokens else "context"
    return None


def prefill(model: Model, prompts: Sequence[Sequence[int]], cache: KVCache) -> torch.Tensor:
    """Read the prompts into the cache, a chunk of rows at a time. Returns the logits (B, V) after each prompt's last token."""
    chunk_tokens = PREFILL_TOKENS_CPU if model.device.type == "cpu" else PREFILL_TOKENS
    n_rows = max(1, chunk_tokens // max(map(len, prompts)))
    logits, lengths = [], []
    for start in range(0, len(prompts), n_rows):
        chunk, part = prompts[start : start + n_rows], cache.part(start, start + n_rows)
        logits.append(model.next_logits(_right_padded(chunk).to(model.device), part, [len(ids) for ids in chunk]))
        lengths += part.lengths
    cache.lengths = lengths
    return torch.cat(logits)


def suppressed_tokens(tokenizer: ChatTokenizer, table_size: int) -> torch.Tensor:
    """Ids (n,) int64 that are never sampled: control tokens that are not stop ids, and padding rows of the token table.

    The control tokens around a model's reasoning are sampled like ordinary ones.
    Raises UserError for a tokenizer that has more ids than the table has rows.
    """
    if tokenizer.vocab_size > table_size:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size} ids, but the model's table has only {table_size} rows; "
            "they don't belong together."
        )
    marks = format_of(tokenizer).reasoning_marks()
    allowed = {name for name in (marks.begin, marks.end) if name in tokenizer.control} if marks else set()
    control = {token_id for name, token_id in tokenizer.control.items() if name not in allowed} - tokenizer.stop_ids
    return torch.tensor(sorted(control | set(range(tokenizer.vocab_size, table_size))), dtype=torch.int64)


def random_streams(seed: int, numbers: Sequence[int]) -> list[np.random.Generator]:
    """One random stream per prompt. It depends on the seed and the prompt's number only, not on the batch."""
    return [np.random.default_rng([seed, number]) for number in numbers]


def _uniforms(streams: Sequence[np.random.Generator], rows: Sequence[int]) -> torch.Tensor:
    """The next random number of each row, (B,) float32 in [0, 1)."""
    return torch.from_numpy(np.array([streams[row].random(dtype=np.float32) for row in rows]))


def concrete_seed(seed: int | None) -> int:
    """Return the seed, or a new random one for None."""
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed


def _tokens_in_prompts(tokenizer: ChatTokenizer, prompts: Sequence[Sequence[int]], model: Model) -> torch.Tensor:
    """(B, V) bool: the tokens in each prompt, without control tokens."""
    seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        seen[row, list(ids)] = True
    # Every turn ends with the same control token. If it counted, later replies would find it hard to end.
    seen[:, list(tokenizer.control.values())] = False
    return seen.to(model.device)


def _right_padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B, T) int64, where T is the longest row; shorter rows are padded with zeros on the right."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = torch.tensor(ids)
    return padded
