"""Text from a model: `generate` for many prompts at once, `stream` for one whose reply is read as it comes.

One decoding loop (`decode`) serves both. What it promises:

- A reply does not depend on what else is in the batch: prompts of different length don't see each other's padding, and
  each draws from a random stream of its own that follows from the seed and the prompt's number.
- A reply ends at one of the tokenizer's stop ids, which is not part of it. All other control tokens and the padding
  rows of the model's table are never sampled: a chat model can't open a turn of another role inside its reply. (In
  chats a role token is a stop id and so ends the reply; llama2.c's BOS, which separates its documents, likewise.)
- A chat model gets its prompt in the chat format, with the system message that it was trained with; a base model goes
  on from the prompt as the beginning of a document.
- On a CPU the model is read in the form that is fastest there (`for_inference`), with the same replies. A `CPUInferenceModel`
  with 16- or 8-bit weights can be given in the model's place wherever one is asked for here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

import numpy as np
import torch

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel, can_decode
from mini_chat_gpt.generation.cpu_weights import FEW_ROWS, Weights
from mini_chat_gpt.generation.prompt_lookup import PromptLookupDecoder, can_look_up
from mini_chat_gpt.generation.sampling import NEG_INF, Sampling, next_ids
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.kv_cache import KVCache
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

FinishReason = Literal["stop", "length", "context"]
Prompt = str | Sequence[Message]
Model = GPT | CPUInferenceModel
WeightsOption = Weights | Literal["auto"]


class _System(Enum):
    FORMAT_DEFAULT = "the system message of the model's chat format, if it has one"


USE_FORMAT_DEFAULT = _System.FORMAT_DEFAULT
System = str | _System | None

# Ended rows leave the batch together, when no more than this part of it goes on: taking rows out copies the cache,
# which costs more than to carry a few of them along.
FULL_ENOUGH = 0.75

# Prompts are read this many tokens at a time. On a CPU what a layer works on then stays in the processor's cache: a sixth
# faster for a model of 1 M parameters.
READ_AT_ONCE_ON_CPU, READ_AT_ONCE = 1024, 16384

# Packing a model's weights for few rows takes as long as it then saves in some 100 tokens.
WORTH_PACKING = 100


@dataclass(frozen=True)
class Reply:
    """What a model said, and why it ended."""

    text: str
    ids: tuple[int, ...]  # without the stop token
    finish_reason: FinishReason  # "stop": by itself; "length": at max_new_tokens; "context": the context is full
    n_prompt: int  # tokens of the prompt, control tokens included
    stop_id: int | None = None  # the stop token that ended it; None where it was cut off


class Step(NamedTuple):
    """One token of one row. With `finish` the row ends; a token that stops it is not part of the reply."""

    row: int
    token_id: int
    finish: FinishReason | None


def generate(
    model: Model,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    system: System = USE_FORMAT_DEFAULT,
    batch_size: int = 32,
) -> list[str]:
    """The reply to each prompt, in order. Settings are those of `Sampling`; the rest as in `generate_replies`."""
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    return [reply.text for reply in generate_replies(model, tokenizer, prompts, sampling, system, batch_size)]


def generate_replies(
    model: Model,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    system: System = USE_FORMAT_DEFAULT,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Reply]:
    """Reply to every prompt, `batch_size` of them at a time, and say how each reply ended.

    A prompt is a text, or a conversation that ends with a user message (chat models only). `system` is put before
    conversations that don't begin with a system message of their own: the chat format's default, a text, or None for
    none. `progress` is called with the number of finished replies after each of them.

    Raises UserError for an empty list, for a prompt that leaves the reply no room in the context, and for a
    conversation or system message given to a base model.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    encoded = _encode_prompts(model, tokenizer, prompts, system)
    model = for_inference(model, min(batch_size, len(prompts)), sampling.max_new_tokens)
    seed = concrete_seed(sampling.seed)
    replies: dict[int, Reply] = {}
    # Prompts of similar length go together, the longest first: least padding, and memory runs out at once or never.
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = [encoded[number] for number in numbers]
        ids: list[list[int]] = [[] for _ in numbers]
        for row, token_id, finish in decode(model, tokenizer, batch, sampling, random_streams(seed, numbers)):
            if finish != "stop":
                ids[row].append(token_id)
            if finish is not None:
                replies[numbers[row]] = _reply(tokenizer, batch[row], ids[row], finish, token_id)
                if progress is not None:
                    progress(len(replies))
    return [replies[number] for number in range(len(encoded))]


def stream(
    model: Model,
    tokenizer: ChatTokenizer,
    prompt: Prompt,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    system: System = USE_FORMAT_DEFAULT,
) -> Generator[str, None, Reply]:
    """The reply to one prompt in pieces of whole characters, as they come; joined they are what `generate` returns.

    The generator's return value is the `Reply` (`reply = yield from stream(...)`). Settings are those of `Sampling`;
    errors as in `generate_replies`.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    [ids] = _encode_prompts(model, tokenizer, [prompt], system)
    model = for_inference(model, 1, max_new_tokens)
    steps = decode(model, tokenizer, [ids], sampling, random_streams(concrete_seed(sampling.seed), [0]))
    return _pieces(tokenizer, ids, steps)


def _pieces(tokenizer: ChatTokenizer, prompt: list[int], steps: Iterator[Step]) -> Generator[str, None, Reply]:
    decoder = tokenizer.stream_decoder(start=begins_text(tokenizer, prompt))
    ids: list[int] = []
    finish: FinishReason | None = None
    token_id = -1
    for _, token_id, finish in steps:
        if finish != "stop":
            ids.append(token_id)
            if piece := decoder.push(token_id):
                yield piece
    if piece := decoder.finish():
        yield piece
    assert finish is not None  # decode ends every row
    return _reply(tokenizer, prompt, ids, finish, token_id)


def prompt_ids(tokenizer: ChatTokenizer, prompt: Prompt, system: System = USE_FORMAT_DEFAULT) -> list[int]:
    """What the model is given to read for a prompt; see `generate_replies`."""
    chat_format = tokenizer.chat_format
    if chat_format is None:
        if not isinstance(prompt, str):
            raise UserError("This is a base model without a chat format; give it a text to go on from, not messages.")
        if isinstance(system, str):
            raise UserError("This is a base model without a chat format; it takes no system message.")
        return [tokenizer.document_id, *tokenizer.encode(prompt)]
    messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if system is USE_FORMAT_DEFAULT:
        system = chat_format.default_system
    if system is not None and not (messages and messages[0].role == "system"):
        messages.insert(0, Message("system", str(system)))
    return render(messages, tokenizer, add_generation_prompt=True)[0]


def _encode_prompts(
    model: Model, tokenizer: ChatTokenizer, prompts: Sequence[Prompt], system: System
) -> list[list[int]]:
    if isinstance(prompts, str) or any(isinstance(prompt, Message) for prompt in prompts):
        raise UserError("prompts must be a list of prompts; put a single text or conversation into a list: [prompt].")
    if not prompts:
        raise UserError("There are no prompts; give at least one.")
    context = model.config.context_length
    encoded = [prompt_ids(tokenizer, prompt, system) for prompt in prompts]
    for number, ids in enumerate(encoded, start=1):
        if len(ids) >= context:
            which = f"Prompt {number} of {len(encoded)}" if len(encoded) > 1 else "The prompt"
            raise UserError(
                f"{which} has {len(ids)} tokens, but the model's context holds {context}, prompt and reply together; "
                f"shorten the prompt to at most {context - 1}, or use a model with a longer context."
            )
    return encoded


def for_inference(model: Model, n_rows: int = 1, n_new: int | None = None, weights: WeightsOption = "auto") -> Model:
    """The form in which to read this model for replies of up to `n_new` tokens (None: many), `n_rows` at a time.

    "auto" keeps float32 weights, and what can't be put into another form (a model on a GPU, or in 16 bits) as it is. Raises
    UserError for other weights where that is so.
    """
    if isinstance(model, CPUInferenceModel):
        return model
    if weights == "auto":
        worth_packing = n_rows <= FEW_ROWS and (n_new is None or n_new >= WORTH_PACKING)
        return CPUInferenceModel(model, "float32", few_rows=worth_packing) if can_decode(model) else model
    return CPUInferenceModel(model, weights)


@torch.inference_mode()
def decode(
    model: Model,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    streams: Sequence[np.random.Generator],
    cache: KVCache | None = None,
    lookup: bool = True,
) -> Iterator[Step]:
    """The decoding loop: read the prompts (ids), then one token after another for each row until all have ended.

    A `cache` that holds the beginnings of these prompts already (`cache.lengths[row]` tokens of each, at least one less
    than all) is gone on from; nothing is read twice. Of several rows, those that have ended leave it. A single row of a
    `CPUInferenceModel` is read ahead where that pays (lookup.py), unless `lookup` is False.
    """
    cache = cache or model.make_cache(len(prompts), max(map(len, prompts)) + sampling.max_new_tokens)
    context, stop_ids, device = model.config.context_length, tokenizer.stop_ids, model.device
    limits = [min(sampling.max_new_tokens, context - len(prompt)) for prompt in prompts]
    never = forbidden(tokenizer, model.config.vocab_size).nonzero().flatten().to(device)
    seen = _seen(tokenizer, prompts, model.config.vocab_size).to(device) if sampling.repetition_penalty != 1 else None
    fresh = [list(prompt[length:]) for prompt, length in zip(prompts, cache.lengths, strict=True)]
    logits = _read(model, fresh, cache)
    reader: Model | PromptLookupDecoder = model
    if lookup and len(prompts) == 1 and isinstance(model, CPUInferenceModel) and can_look_up(model) and seen is None:
        reader = PromptLookupDecoder(model, prompts[0], never)
    rows, ended, n_new = list(range(len(prompts))), set[int](), 0
    while True:
        uniforms = _uniforms(streams, rows) if sampling.temperature != 0 else None
        ids = next_ids(logits.index_fill_(1, never, NEG_INF), sampling, seen, uniforms)
        n_new += 1
        for row, token_id in zip(rows, ids.tolist(), strict=True):
            if row in ended:
                continue
            finish: FinishReason | None = None
            if token_id in stop_ids:
                finish = "stop"
            elif n_new == limits[row]:
                finish = "length" if n_new == sampling.max_new_tokens else "context"
            if finish is not None:
                ended.add(row)
            yield Step(row, token_id, finish)
        places = [place for place, row in enumerate(rows) if row not in ended]
        if not places:
            return
        if len(places) <= FULL_ENOUGH * len(rows):
            cache.keep_rows(places)
            rows, ids = [rows[place] for place in places], ids[places]
            seen = seen[places] if seen is not None else None
        if seen is not None:
            seen.scatter_(1, ids[:, None], True)
        logits = reader.next_logits(ids[:, None], cache, [int(row not in ended) for row in rows])


def _read(model: Model, prompts: Sequence[Sequence[int]], cache: KVCache) -> torch.Tensor:
    """Read prompts into the cache, some rows at a time; returns the logits (B, V) after the last token of each."""
    at_once = READ_AT_ONCE_ON_CPU if model.device.type == "cpu" else READ_AT_ONCE
    n_rows = max(1, at_once // max(map(len, prompts)))
    logits, lengths = [], []
    for start in range(0, len(prompts), n_rows):
        some, part = prompts[start : start + n_rows], cache.part(start, start + n_rows)
        logits.append(model.next_logits(_right_padded(some).to(model.device), part, [len(ids) for ids in some]))
        lengths += part.lengths
    cache.lengths = lengths
    return torch.cat(logits)


def forbidden(tokenizer: ChatTokenizer, table_size: int) -> torch.Tensor:
    """(table_size,) bool: ids that are never sampled, control tokens that don't stop and padding rows of the table."""
    if tokenizer.vocab_size > table_size:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size} ids, but the model's table only {table_size} rows; "
            "they don't belong together."
        )
    never = torch.zeros(table_size, dtype=torch.bool)
    never[tokenizer.vocab_size :] = True
    never[list(set(tokenizer.control.values()) - tokenizer.stop_ids)] = True
    return never


def random_streams(seed: int, numbers: Sequence[int]) -> list[np.random.Generator]:
    """A stream of random numbers for each prompt, from the seed and the prompt's number alone."""
    return [np.random.default_rng([seed, number]) for number in numbers]


def _uniforms(streams: Sequence[np.random.Generator], rows: Sequence[int]) -> torch.Tensor:
    """The next random number of each row, (B,) float32 in [0, 1)."""
    return torch.from_numpy(np.array([streams[row].random(dtype=np.float32) for row in rows]))


def concrete_seed(seed: int | None) -> int:
    """The seed, or for None another one each time."""
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed


def _seen(tokenizer: ChatTokenizer, prompts: Sequence[Sequence[int]], table_size: int) -> torch.Tensor:
    """(B, table_size) bool: the tokens of each prompt. Control tokens don't count, every turn ends with the same."""
    seen = torch.zeros(len(prompts), table_size, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        seen[row, list(ids)] = True
    seen[:, list(tokenizer.control.values())] = False
    return seen


def _right_padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B, longest), int64, zeros behind shorter rows."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = torch.tensor(ids)
    return padded


def begins_text(tokenizer: ChatTokenizer, prompt: Sequence[int]) -> bool:
    """Whether a reply begins a text of its own, as after a control token, or goes on in the middle of one."""
    return prompt[-1] in tokenizer.control.values()


def _reply(
    tokenizer: ChatTokenizer, prompt: Sequence[int], ids: list[int], finish: FinishReason, last_id: int
) -> Reply:
    text = tokenizer.decode(ids, start=begins_text(tokenizer, prompt))
    return Reply(text, tuple(ids), finish, len(prompt), last_id if finish == "stop" else None)
