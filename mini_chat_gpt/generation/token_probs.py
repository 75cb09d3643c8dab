"""Token probabilities: how likely each token of a reply was, and which alternatives the model had.

`explain` runs the model over prompt and reply again, in the form that generation used. For every token of the reply, and for
the stop token that ended it, it computes what generation saw there: the model's probability, the rank, the probability of
being sampled, and the most likely alternatives. `chat/token_probs_view.py` displays the result.

This has no side effects; a conversation's KV cache is unchanged. With 16- and 8-bit weights, rounding depends on how many
tokens are read at once, so there the reply is read one token at a time, as in generation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean

import torch

from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.decode import Model, suppressed_tokens
from mini_chat_gpt.generation.mixed_precision import MixedPrecisionModel
from mini_chat_gpt.generation.prompt_lookup import MIN_LOGIT_GAP
from mini_chat_gpt.generation.sampling import NEG_INF, Sampling, argmax, process_logits
from mini_chat_gpt.generation.text import begins_text
from mini_chat_gpt.ops.attention import Causal
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

CHUNK = 128  # rows of logits at a time, each as long as the vocabulary
OTHERS, MOST_SURPRISING = 5, 12
STEPS = (0.05, 0.2, 0.5, 0.9)  # thresholds between the colors, from red to green
STEP_NAMES = ("below 5%", "5–20%", "20–50%", "50–90%", "90% and more")
_VISIBLE = {" ": "·", "\n": "↵", "\t": "→"}


@dataclass(frozen=True)
class Candidate:
    """A token that the model could have chosen."""

    token_id: int
    shown: str  # the token with visible spaces and line breaks
    log_probability: float  # of the model
    sampling_probability: float  # with the reply's sampling settings

    @property
    def probability(self) -> float:
        """The model's probability."""
        return math.exp(self.log_probability)

    @property
    def step(self) -> int:
        """Index of the color: 0 (very unlikely) to 4 (nearly certain)."""
        return sum(self.probability >= limit for limit in STEPS)


@dataclass(frozen=True)
class Token(Candidate):
    """A token of the reply, or the stop token that ended it."""

    text: str  # what it adds to the reply; "" for a part of a character, and the name of a stop token
    rank: int  # 1: no token is more likely
    others: tuple[Candidate, ...]  # the most likely ones, in order


@dataclass(frozen=True)
class Explanation:
    """A reply, token by token."""

    prompt: str  # what the model read, with the names of control tokens
    tokens: tuple[Token, ...]
    ended: bool  # the last token is the stop token
    sampling: Sampling

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(min(700.0, -fmean(token.log_probability for token in self.tokens)))

    @property
    def mean_probability(self) -> float:
        return fmean(token.probability for token in self.tokens)

    def most_surprising(self, n: int) -> list[int]:
        """The indices of the n least likely tokens, in the order of the reply."""
        indices = range(len(self.tokens))
        return sorted(sorted(indices, key=lambda index: self.tokens[index].log_probability)[:n])

    def summary(self) -> str:
        """One line with the main numbers."""
        n, index = len(self.tokens), self.most_surprising(1)[0]
        least_likely = self.tokens[index]
        end = " including the stop token" if self.ended else ""
        return (
            f"{n} {'token' if n == 1 else 'tokens'}{end}: mean probability {percent(self.mean_probability)}, perplexity "
            f"{self.perplexity:.3g}; least likely “{least_likely.shown}” (token {index + 1}, {percent(least_likely.probability)})."
        )

    @property
    def greedy(self) -> bool:
        """Whether the reply was generated with temperature 0."""
        return self.sampling.temperature == 0

    def legend(self) -> str:
        """What the displayed probabilities mean."""
        names = ["temperature"] if self.greedy else ["temperature", "top_k", "top_p", "min_p"]
        names += ["repetition_penalty"] if self.sampling.repetition_penalty != 1 else []
        values = [(name, getattr(self.sampling, name)) for name in names]
        settings = ", ".join(f"{name} {value:g}" for name, value in values if value is not None)
        signs = " In tokens, · is a space and ↵ a line break."
        if self.greedy:
            return f"“model” is the model's probability; the most likely token was chosen ({settings}).{signs}"
        return f"“model” is the model's probability, “sampled” the probability with {settings}.{signs}"


@torch.inference_mode()
def explain(
    model: Model,
    tokenizer: ChatTokenizer,
    prompt: Sequence[int],
    reply: Sequence[int],
    stop_id: int | None,
    sampling: Sampling,
    n_others: int = OTHERS,
) -> Explanation:
    """Explain a `reply` (ids) that `sampling` gave for a `prompt` (ids, as the model read them).

    `stop_id` is the token that ended the reply, or None if it was cut off. Raises ValueError if there is no token at all.
    """
    targets = [*reply, *([] if stop_id is None else [stop_id])]
    if not targets:
        raise ValueError("there is no token to explain")
    suppressed = suppressed_tokens(tokenizer, model.config.vocab_size).to(model.device)
    decoder = tokenizer.stream_decoder(control=True, start=begins_text(tokenizer, prompt))  # the marks of reasoning
    texts = [decoder.push(token_id) for token_id in reply]
    if reply:
        texts[-1] += decoder.finish()
    if stop_id is not None:
        texts.append(token_form(tokenizer, stop_id))
    tokens: list[Token] = []
    for logits in _logits(model, prompt, targets):  # (R, V)
        start, n_rows = len(tokens), len(logits)
        chosen = torch.tensor(targets[start : start + n_rows], device=logits.device)[:, None]  # (R, 1)
        seen = None
        if sampling.repetition_penalty != 1:
            seen = _seen_before(tokenizer, prompt, targets, range(start, start + n_rows), logits.shape[1]).to(
                logits.device
            )
        sampling_probs = _sampling_probabilities(logits.index_fill(1, suppressed, NEG_INF), chosen, sampling, seen)
        ranks = (logits > logits.gather(1, chosen)).sum(dim=1) + 1
        for row, rank in zip(
            _candidates(tokenizer, logits, sampling_probs, chosen, n_others), ranks.tolist(), strict=True
        ):
            tokens.append(Token(**vars(row[0]), text=texts[len(tokens)], rank=rank, others=tuple(row[1:])))
    return Explanation(tokenizer.decode(prompt, control=True), tuple(tokens), stop_id is not None, sampling)


def _candidates(
    tokenizer: ChatTokenizer, logits: torch.Tensor, sampling_probs: torch.Tensor, chosen: torch.Tensor, n_others: int
) -> Iterator[list[Candidate]]:
    """For each row of logits (R, V), yield the chosen token (from `chosen`, (R, 1)) and the most likely alternatives."""
    likely = logits.topk(min(n_others + 1, logits.shape[1]), dim=-1).indices
    ids = torch.cat((chosen, likely), dim=1)  # usually contains the chosen token twice
    logs, probs = logits.log_softmax(dim=-1).gather(1, ids), sampling_probs.gather(1, ids)
    for row in zip(ids.tolist(), logs.tolist(), probs.tolist(), strict=True):
        first, *rest = [Candidate(i, token_form(tokenizer, i), log, prob) for i, log, prob in zip(*row, strict=True)]
        yield [first, *(candidate for candidate in rest if candidate.token_id != first.token_id)][: n_others + 1]


def _logits(model: Model, prompt: Sequence[int], targets: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yield the logits from which each target was chosen, (R, V) float32, a chunk of targets at a time."""
    ids = torch.tensor([[*prompt, *targets[:-1]]], device=model.device)
    first, n = len(prompt), ids.shape[1]
    if isinstance(model, CPUInferenceModel):
        cache = model.make_cache(1, n)
        yield model.next_logits(ids[:, :first], cache, [first])
        exact = model.weights == "float32"
        for part in ids[:, first:].split(CHUNK if exact else 1, dim=1):
            if part.shape[1]:  # rounded weights use another kernel for a single token, as in generation
                yield model.all_logits(part, cache)[0] if exact else model.next_logits(part, cache, [1])
        return
    net, precision = (model.model, model.autocast) if isinstance(model, MixedPrecisionModel) else (model, nullcontext)
    positions = torch.arange(n, device=model.device)
    with precision():
        hidden = net.hidden(ids, positions[None], Causal(), positions[first - 1 :])[0]  # (R, C)
    for rows in hidden.split(CHUNK):
        with precision():  # not around `yield`, which would leave it on in the caller
            logits = net.lm_head(rows).float()
        yield logits


def _seen_before(
    tokenizer: ChatTokenizer, prompt: Sequence[int], targets: Sequence[int], indices: range, table_size: int
) -> torch.Tensor:
    """(R, V) bool: the tokens before each of the targets at `indices`. Control tokens of the prompt don't count."""
    seen = torch.zeros(len(indices), table_size, dtype=torch.bool)
    seen[:, list(prompt)] = True
    seen[:, list(tokenizer.control.values())] = False
    for row, index in enumerate(indices):
        seen[row, list(targets[:index])] = True
    return seen


def _sampling_probabilities(
    logits: torch.Tensor, targets: torch.Tensor, sampling: Sampling, seen: torch.Tensor | None
) -> torch.Tensor:
    """The probability of each token with the settings of `sampling`, given the `targets` (R, 1) chosen. (R, V) -> (R, V)."""
    logits = process_logits(logits, sampling, seen)
    if sampling.temperature != 0:
        return logits.softmax(dim=-1)
    best = argmax(logits)[:, None]
    # Rounding decides between nearly equal logits, and it depends on how many tokens are read at once.
    tied = logits.gather(1, targets) > logits.gather(1, best) - MIN_LOGIT_GAP
    return torch.zeros_like(logits).scatter_(1, torch.where(tied, targets, best), 1.0)


def token_form(tokenizer: ChatTokenizer, token_id: int) -> str:
    """A token as text to display: spaces and line breaks are visible, and parts of characters are shown as bytes."""
    if token_id >= tokenizer.vocab_size:
        return f"<padding {token_id}>"
    raw = tokenizer.decode_bytes([token_id], control=True, start=False)
    text = raw.decode("utf-8", errors="backslashreplace")
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def percent(p: float) -> str:
    """Format a probability with its significant digits."""
    if p in (0, 1):
        return f"{p:.0%}"
    if p > 0.999:
        return ">99.9%"
    if p < 1e-5:
        return "<0.001%"
    return f"{p:.1%}" if p >= 0.01 else f"{100 * p:.2g}%"
