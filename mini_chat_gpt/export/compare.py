"""Compare two forms of a model: weights, logits on a text, and greedy replies. The parts of a proof (proof.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.checkpoints.build import StoredModel
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.export.proof_texts import BEGINNING, CHAT, MAX_TOKENS
from mini_chat_gpt.export.turns import conversation_text
from mini_chat_gpt.generation.decode import for_inference, suppressed_tokens
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.generation.text import generate_replies, prompt_ids
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.functional import rope_frequencies
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

WINDOW = 512
MAX_LOGITS = 2**24
"""Logits that are computed at a time, so that they take 64 MB."""
MAX_REPLY = 48


# Config and weights


def differing_fields(one: GPTConfig, other: GPTConfig) -> list[str]:
    """The fields of `GPTConfig` in which two models differ, with defaults written out, up to the rounding of float32."""
    first, second = _explicit(one), _explicit(other)
    return [name for name, value in first.items() if not _equal(value, second[name])]


def _explicit(config: GPTConfig) -> dict[str, Any]:
    values: dict[str, Any] = dict(config)
    windows = config.windows if config.windows and any(config.windows) else (None,) * config.n_layer
    values |= {
        "n_kv_head": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "mlp_bias": config.mlp_has_bias,
        "attention_scale": config.attention_scale or config.head_size**-0.5,
        "windows": windows,
        "embedding_factor": config.embedding_factor or 1.0,
        "window_rope_theta": (config.window_rope_theta or config.rope_theta) if any(windows) else None,
    }
    if config.position == "rope":  # several settings of llama3's rule mean the same frequencies
        values["rope_scaling"] = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling).tolist()
    return values


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-5)
    return bool(one == other)


@dataclass(frozen=True)
class WeightsCompared:
    """The largest rounding error of a matrix, ‖W − Ŵ‖ / ‖W‖, and which one it is."""

    n_weights: int
    n_tensors: int
    error: float
    worst: str


def compare_weights(one: StoredModel, other: StoredModel) -> WeightsCompared:
    """Compare the tensors of two models one by one. A shape that differs counts as an error of 1."""
    worst, largest, n_weights = "", 0.0, 0
    for name, info in one.infos.items():
        weight, again = one.read(name).float(), other.read(name).float()
        n_weights += math.prod(info.shape)
        size = float(weight.norm())
        error = float((weight - again).norm()) / (size or 1.0) if weight.shape == again.shape else 1.0
        if error > largest or not math.isfinite(error):
            worst, largest = name, error
    return WeightsCompared(n_weights, len(one.infos), largest, worst)


# Logits


@dataclass(frozen=True)
class LogitsCompared:
    """How two models predict the same text.

    difference      root mean square of the differences of logits, relative to that of the logits. Both without the mean over
                    the vocabulary at each position, which changes no probability
    same_token      share of positions at which both have the same most probable token
    divergence      mean Kullback-Leibler divergence of the predictions, in bits per token
    """

    n_tokens: int
    difference: float
    same_token: float
    divergence: float
    bits_per_byte: tuple[float, float]

    @property
    def added_bits(self) -> float:
        return self.bits_per_byte[1] - self.bits_per_byte[0]


@torch.inference_mode()
def compare_logits(one: GPT, other: GPT, tokenizer: ChatTokenizer, text: str) -> LogitsCompared:
    """Compare the predictions of the first MAX_TOKENS tokens of a text, in windows that fit the context."""
    n_ids = tokenizer.vocab_size
    size = min(WINDOW, one.config.context_length - 1, max(16, MAX_LOGITS // n_ids))
    ids, first = tokenizer.encode(text)[:MAX_TOKENS], start_of_text(tokenizer)
    sums, n_tokens, n_bytes = np.zeros(6), 0, 0
    for start in range(0, len(ids), size):
        window = [*first, *ids[start : start + size]]
        pair = [model(torch.tensor([window]))[0, :, :n_ids].float() for model in (one, other)]
        targets = torch.tensor(window[1:])
        sums += _sums(pair[0][:-1], pair[1][:-1], targets)
        n_tokens += len(targets)
        predicted = np.array(window[1:], dtype=np.int64)
        n_bytes += int(tokenizer.byte_lengths(predicted, start=False).sum())
    squares, of_logits, same, divergence, bits, other_bits = sums
    return LogitsCompared(
        n_tokens=n_tokens,
        difference=math.sqrt(squares / max(of_logits, 1e-30)),
        same_token=same / n_tokens,
        divergence=divergence / n_tokens,
        bits_per_byte=(bits / n_bytes, other_bits / n_bytes),
    )


def start_of_text(tokenizer: ChatTokenizer) -> list[int]:
    """The id that begins a text, [] if the tokenizer has none."""
    if tokenizer.bos_id is not None:
        return [tokenizer.bos_id]
    bos = None if tokenizer.declared is None else tokenizer.declared.bos_id
    end = tokenizer.control.get("<|endoftext|>", bos)
    return [] if end is None else [end]


def _sums(one: torch.Tensor, other: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Sums over the positions of logits (T, V) for the targets (T,), in the order of `compare_logits`."""
    log_p, log_q = F.log_softmax(one, -1), F.log_softmax(other, -1)
    centered = one - one.mean(-1, keepdim=True)
    delta = centered - (other - other.mean(-1, keepdim=True))
    bits = [-logs.gather(1, targets[:, None]).sum().item() / math.log(2) for logs in (log_p, log_q)]
    divergence = max(0.0, (log_p.exp() * (log_p - log_q)).sum().item() / math.log(2))
    same = (one.argmax(-1) == other.argmax(-1)).sum().item()
    return np.array([delta.square().sum().item(), centered.square().sum().item(), same, divergence, *bits])


# Replies


@dataclass(frozen=True)
class Turn:
    """A greedy reply of the model: the prompt and the reply, with its stop token, as ids and as texts.

    The text of the prompt has the names of control tokens in it, but not the BOS that the tokenizer inserts by itself.
    """

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    text: str
    prompt_text: str


def three_turns(model: GPT, tokenizer: ChatTokenizer) -> list[Turn]:
    """The greedy replies of a chat of three turns, as many as fit into the context; of a base model one continuation."""
    if tokenizer.chat_format is None:
        return [_turn(model, tokenizer, BEGINNING)]
    messages: list[Message] = []
    turns: list[Turn] = []
    for question in CHAT:
        messages.append(Message("user", question))
        if len(prompt_ids(tokenizer, messages)) + 1 >= model.config.context_length:
            break
        turns.append(_turn(model, tokenizer, messages))
        messages.append(Message("assistant", turns[-1].text if turns[-1].text.strip() else "Yes."))
    return turns


def _turn(model: GPT, tokenizer: ChatTokenizer, prompt: Any) -> Turn:
    sampling = Sampling(max_new_tokens=MAX_REPLY, temperature=0)
    [reply] = generate_replies(for_inference(model, 1, MAX_REPLY), tokenizer, [prompt], sampling)
    ids = reply.ids if reply.stop_id is None else (*reply.ids, reply.stop_id)
    return Turn(tuple(prompt_ids(tokenizer, prompt)), ids, reply.text, _prompt_text(tokenizer, prompt))


def _prompt_text(tokenizer: ChatTokenizer, prompt: str | Sequence[Message]) -> str:
    chat_format = tokenizer.chat_format
    if chat_format is None or isinstance(prompt, str):
        first = "" if tokenizer.bos_id is not None else tokenizer.decode([tokenizer.document_id], control=True)
        return first + str(prompt)
    if chat_format.own_system is not None and chat_format.default_system is None:
        # The template would insert a message that our chat leaves out.
        return tokenizer.decode(prompt_ids(tokenizer, prompt), control=True)
    default = chat_format.default_system
    begin = [Message("system", default)] if default is not None and prompt[0].role != "system" else []
    return conversation_text(tokenizer, [*begin, *prompt])


@dataclass(frozen=True)
class RepliesCompared:
    """Whether another model generates the same replies, token for token.

    parts       (turn, token) from 1 at which they part for the first time, None if they don't
    margin      by how much the logit of the model's own token exceeds that of the other's token there
    difference  that of the logits at all positions of the replies, see `LogitsCompared`
    """

    n_tokens: int
    parts: tuple[int, int] | None
    margin: float
    difference: float
    logits: list[np.ndarray] = field(repr=False)
    """(T, V) of the first model along each reply, with the padding rows of its table."""


@torch.inference_mode()
def compare_replies(one: GPT, other: GPT, tokenizer: ChatTokenizer, turns: Sequence[Turn]) -> RepliesCompared:
    """Compare the most probable tokens of both models at each position of the replies of `one`."""
    suppressed = suppressed_tokens(tokenizer, one.config.vocab_size)
    squares = of_logits = margin = 0.0
    parts, n_tokens, logits = None, 0, []
    for number, turn in enumerate(turns, start=1):
        ids = torch.tensor([[*turn.prompt, *turn.reply[:-1]]])
        n_reply, n_ids = len(turn.reply), tokenizer.vocab_size
        pair = [model(ids)[0, -n_reply:].float() for model in (one, other)]
        logits.append(pair[0].numpy())
        sums = _sums(pair[0][:, :n_ids], pair[1][:, :n_ids], torch.tensor(turn.reply))
        squares, of_logits, n_tokens = squares + sums[0], of_logits + sums[1], n_tokens + n_reply
        allowed = pair[1].index_fill(1, suppressed[suppressed < pair[1].shape[1]], -torch.inf)
        chosen = allowed.argmax(-1).tolist()
        different = [at for at, (mine, its) in enumerate(zip(turn.reply, chosen, strict=True)) if mine != its]
        if different and parts is None:
            at = different[0]
            parts = (number, at + 1)
            margin = float(pair[0][at, turn.reply[at]] - pair[0][at, chosen[at]])
    return RepliesCompared(n_tokens, parts, margin, math.sqrt(squares / max(of_logits, 1e-30)), logits)
