"""The proof of an export: the written files are read back by the importer, and must give the same ids, logits and replies.

A weight that is stored in fewer bits is rounded, and the logits with it. `BOUNDS` says how far each type may go. A mistake (rows
in another order, a transposed matrix, another rotary base) makes differences of the size of the weights and logits themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.checkpoints.load import open_pair
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.export.compare import (
    LogitsCompared,
    RepliesCompared,
    Turn,
    WeightsCompared,
    compare_logits,
    compare_replies,
    compare_weights,
    differing_fields,
    three_turns,
)
from mini_chat_gpt.export.losses import Losses
from mini_chat_gpt.export.proof_texts import CHAT, N_STRINGS, hostile_strings, packaged_text
from mini_chat_gpt.generation.text import prompt_ids
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


class ProofError(Exception):
    """An export that does not give the same answers; the message is one sentence."""


@dataclass(frozen=True)
class Bound:
    """What a type of weights may change. See docs/export.md for where the numbers come from.

    weights   rounding error of a matrix, ‖W − Ŵ‖ / ‖W‖
    logits    difference of logits for each layer, in units of the root of the number of layers
    """

    weights: float
    logits: float


# Rounding to multiples of a step makes an error of step / √12. The root mean square of a block of 32 weights is at least that of one weight
# alone, its largest, divided by √32. The step is the largest weight / 127, 16 or 8, or the range of the block / 31 or 15.
BOUNDS = {
    "f32": Bound(1e-6, 1e-5),
    "f16": Bound(5e-4, 2e-3),
    "bf16": Bound(4e-3, 1.5e-2),
    "q8_0": Bound(1.3e-2, 4e-2),
    "q5_1": Bound(0.11, 0.15),
    "q5_0": Bound(0.11, 0.2),
    "q4_1": Bound(0.22, 0.3),
    "q4_0": Bound(0.21, 0.4),
}
MOST = 0.9
"""No bound on logits is larger: unrelated logits of the same size differ by 1.4."""


@dataclass(frozen=True)
class Proof:
    """What was compared, and the numbers. `lines` are for people."""

    lines: list[str]
    weights: WeightsCompared
    logits: LogitsCompared
    replies: RepliesCompared
    turns: list[Turn] = field(repr=False)
    config: GPTConfig = field(repr=False)


def prove(source: Path, written: Path, bound: Bound, losses: Losses | None = None, base: Path | None = None) -> Proof:
    """Compare the model of `source` with the files in `written`. Raises ProofError if they differ by more than the bound allows.

    Both models are in memory in float32. `losses` are what the tokenizer of the written format is known not to keep. `base` is that
    of an adapter in `written`.
    """
    stored, tokenizer = open_pair(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            again, its_tokenizer = open_pair(written, base=base)
        except UserError as error:
            raise ProofError(f"the written files can't be read back: {error}") from None
    losses = losses or Losses()
    if fields := differing_fields(stored.config, _without_padding(again.config, stored.config.vocab_size)):
        raise ProofError(f"the model that was read back differs in {', '.join(fields)}.")
    lines = [_ids_line(tokenizer, its_tokenizer, losses)]
    lines += _chat_lines(tokenizer, its_tokenizer, [str(one.message) for one in caught])
    weights = compare_weights(stored, again)
    if weights.error > bound.weights:
        raise ProofError(
            f"the tensor {weights.worst} that was read back differs by {weights.error:.2g} of its size; at most "
            f"{bound.weights:.2g} is possible by rounding."
        )
    lines.append(
        f"{weights.n_weights:,} weights in {weights.n_tensors} tensors: rounding error at most {weights.error:.2g} of a tensor's "
        f"size (bound {bound.weights:.2g})"
    )
    one, other = stored.load(), again.load()
    limit = min(MOST, bound.logits * stored.config.n_layer**0.5)
    logits = compare_logits(one, other, tokenizer, packaged_text())
    lines.append(_logits_line(logits, limit))
    turns = three_turns(one, tokenizer)
    replies = compare_replies(one, other, tokenizer, turns)
    lines.append(_replies_line(replies, turns, limit))
    return Proof(lines, weights, logits, replies, turns, stored.config)


def _without_padding(config: GPTConfig, vocab_size: int) -> GPTConfig:
    """The config as if its table had as many rows as the original's, of which a format may cut unused ones."""
    return config.model_copy(update={"vocab_size": vocab_size}) if config.vocab_size < vocab_size else config


# Tokenizer


def _ids_line(tokenizer: ChatTokenizer, other: ChatTokenizer, losses: Losses) -> str:
    """Compare the ids of texts. Raises ProofError if they differ."""
    strings = [losses.change(text) for text in hostile_strings(tokenizer.control)]
    text = losses.change(packaged_text())
    if tokenizer.encode(text) != other.encode(text):
        raise ProofError("the packaged text has other ids with the tokenizer that was read back.")
    different = [text for text in strings if tokenizer.encode(text) != other.encode(text)]
    if different and losses.any_strings:
        raise ProofError(
            f"{len(different)} of {N_STRINGS:,} strings have other ids with the tokenizer that was read back, for example "
            f"{short(different[0])}."
        )
    equal = f"{N_STRINGS - len(different):,} of {N_STRINGS:,}" if different else f"{N_STRINGS:,}"
    notes = f" ({'; '.join(losses.notes)})" if losses.notes else ""
    return f"equal ids of {equal} hostile strings and of a text of {len(text):,} characters{notes}"


def _chat_lines(tokenizer: ChatTokenizer, other: ChatTokenizer, warned: Sequence[str]) -> list[str]:
    """Compare the chat formats. Raises ProofError if they differ."""
    if tokenizer.chat_format is None:
        return []
    if other.chat_format is None:
        reason = next((text for text in warned if "template" in text), "the files have none")
        raise ProofError(f"the chat format can't be read back: {reason}.")
    conversations = _conversations(tokenizer)
    for number, messages in enumerate(conversations, start=1):
        # Other programs add nothing to the messages; our chat adds its default system message.
        if prompt_ids(tokenizer, messages) != render(messages, other, True)[0]:
            raise ProofError(f"conversation {number} has other ids with the chat format that was read back.")
    ended = [*conversations[-1], Message("assistant", "All right.\nBye!")]
    if render(ended, tokenizer)[0] != render(ended, other)[0]:
        raise ProofError("a conversation that ends with a reply has other ids with the chat format that was read back.")
    missing = tokenizer.chat_format.end_ids(tokenizer) - other.stop_ids
    if missing:
        names = {token_id: name for name, token_id in tokenizer.control.items()}
        raise ProofError(f"a reply would not end at {', '.join(names[one] for one in sorted(missing))}.")
    return [f"equal ids of {len(conversations)} conversations in the chat format, and the same tokens end a reply"]


def _conversations(tokenizer: ChatTokenizer) -> list[list[Message]]:
    """Five conversations that end with a message of the user; the last two have a system message, if the format has them."""
    contents = (
        [CHAT[0]],
        [CHAT[0], "I am a model.", CHAT[1]],
        ["  two spaces, 12,345.67  \n", "One line.\n\nAnother: é 你好 🙂", "{{ x }} \\ ' \"", "Yes.", "a"],
    )
    plain = [[Message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)] for texts in contents]
    chat_format = tokenizer.chat_format
    assert chat_format is not None
    system = [Message("system", "You are a\ngood helper.")] if getattr(chat_format, "has_system", True) else []
    # A template that inserts a message which the model was trained without can't be used without one of its own.
    first = system if chat_format.own_system is not None and chat_format.default_system is None else []
    return [*([*first, *one] for one in plain), [*system, *plain[0]], [*system, *plain[2]]]


# Lines


def _logits_line(logits: LogitsCompared, limit: float) -> str:
    if logits.difference > limit:
        raise ProofError(
            f"the logits on {logits.n_tokens:,} tokens differ by {logits.difference:.2g} of their size; at most {limit:.2g} is "
            "possible by rounding."
        )
    before, after = logits.bits_per_byte
    return (
        f"logits on {logits.n_tokens:,} tokens: difference {logits.difference:.2g} of their size (bound {limit:.2g}), same most "
        f"probable token {100 * logits.same_token:.1f} %, KL divergence {logits.divergence:.2g} bits, {before:.4f} → {after:.4f} bits "
        f"per byte ({logits.added_bits:+.2g})"
    )


def _replies_line(replies: RepliesCompared, turns: Sequence[Turn], limit: float) -> str:
    what = f"greedy replies of {len(turns)} turn{'s'[: len(turns) != 1]} ({replies.n_tokens} tokens)"
    if not turns:
        return "no reply compared: the context is too short for the chat"
    if replies.difference > limit:
        raise ProofError(
            f"the logits along the {what} differ by {replies.difference:.2g} of their size; at most {limit:.2g} is possible by rounding."
        )
    if replies.parts is None:
        return f"{what}: equal"
    turn, token = replies.parts
    return (
        f"{what}: they part at token {token} of turn {turn}, where the model prefers its own token by {replies.margin:.2g}; the "
        f"logits along the replies differ by {replies.difference:.2g} of their size (bound {limit:.2g})"
    )
