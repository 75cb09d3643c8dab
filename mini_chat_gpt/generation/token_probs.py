"""Why did it say that? Each token of a reply with its probability, and what could have come in its place.

`explain` reads prompt and reply once more, in the form that generation read them in, and finds for every token of the reply,
and for the stop token that ended it, what generation saw there: the probability that the model gives it, its rank, the
probability with which it was drawn, and the likeliest of the others. `chat/token_probs_view.py` shows that.

Nothing else is touched: a conversation's cache stays as it is. With 16- and 8-bit weights several tokens read together get
other last digits than one alone; so there the reply is read token by token, as it was generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.decode import Model, suppressed_tokens
from mini_chat_gpt.generation.prompt_lookup import MIN_LOGIT_GAP
from mini_chat_gpt.generation.sampling import NEG_INF, Sampling, argmax, process_logits
from mini_chat_gpt.generation.text import begins_text
from mini_chat_gpt.ops.attention import Causal
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

AT_ONCE = 128  # rows of logits, each as long as the vocabulary
OTHERS, MOST_SURPRISING = 5, 12
STEPS = (0.05, 0.2, 0.5, 0.9)  # where a probability gets the next colour, from red to green
STEP_NAMES = ("below 5%", "5–20%", "20–50%", "50–90%", "90% and more")
_VISIBLE = {" ": "·", "\n": "↵", "\t": "→"}


@dataclass(frozen=True)
class Candidate:
    """A token that could have come."""

    token_id: int
    shown: str  # the token itself, with its spaces and line breaks visible
    log_probability: float  # as the model has it
    drawn: float  # the probability with which the reply's settings draw it

    @property
    def probability(self) -> float:
        """As the model has it."""
        return math.exp(self.log_probability)

    @property
    def step(self) -> int:
        """0 (hardly expected) to 4 (nearly certain)."""
        return sum(self.probability >= limit for limit in STEPS)


@dataclass(frozen=True)
class Token(Candidate):
    """A token of the reply, or the one that ended it."""

    text: str  # what it adds to the reply, "" for a part of a character; of the stop token the name
    rank: int  # 1: the model has none that is likelier
    others: tuple[Candidate, ...]  # the likeliest, in order


@dataclass(frozen=True)
class Explanation:
    """A reply, token by token."""

    prompt: str  # what the model had read, with the names of control tokens
    tokens: tuple[Token, ...]
    ended: bool  # the last of them is the stop token
    sampling: Sampling

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability: among how many equally likely tokens each was chosen, as it were."""
        return math.exp(min(700.0, -fmean(token.log_probability for token in self.tokens)))

    @property
    def mean_probability(self) -> float:
        return fmean(token.probability for token in self.tokens)

    def most_surprising(self, n: int) -> list[int]:
        """The places of the n least likely tokens, from 0, in the order of the reply."""
        places = range(len(self.tokens))
        return sorted(sorted(places, key=lambda place: self.tokens[place].log_probability)[:n])

    def summary(self) -> str:
        """In a line."""
        n, place = len(self.tokens), self.most_surprising(1)[0]
        least = self.tokens[place]
        end = ", the end included" if self.ended else ""
        return (
            f"{n} {'token' if n == 1 else 'tokens'}{end}: mean probability {percent(self.mean_probability)}, perplexity "
            f"{self.perplexity:.3g}; least sure of “{least.shown}” (number {place + 1}, {percent(least.probability)})."
        )

    @property
    def greedy(self) -> bool:
        """The likeliest token was taken, always."""
        return self.sampling.temperature == 0

    def legend(self) -> str:
        """What the probabilities mean."""
        names = ["temperature"] if self.greedy else ["temperature", "top_k", "top_p", "min_p"]
        names += ["repetition_penalty"] if self.sampling.repetition_penalty != 1 else []
        values = [(name, getattr(self.sampling, name)) for name in names]
        settings = ", ".join(f"{name} {value:g}" for name, value in values if value is not None)
        signs = " In tokens · is a space and ↵ a line break."
        if self.greedy:
            return f"“model” is the model's own probability; the likeliest token was taken ({settings}).{signs}"
        return f"“model” is the model's own probability, “drawn” the one with the settings: {settings}.{signs}"


# ---- finding it out --------------------------------------------------------------------------------------------------


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
    """Explain a `reply` (ids) to a `prompt` (ids, as the model read them) that `sampling` drew.

    `stop_id` is the token that ended the reply, None where it was cut off. Raises ValueError where there is no token at all.
    """
    targets = [*reply, *([] if stop_id is None else [stop_id])]
    if not targets:
        raise ValueError("there is no token to explain")
    never = suppressed_tokens(tokenizer, model.config.vocab_size).to(model.device)
    decoder = tokenizer.stream_decoder(start=begins_text(tokenizer, prompt))
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
            seen = _seen(tokenizer, prompt, targets, range(start, start + n_rows), logits.shape[1]).to(logits.device)
        drawn = _drawn(logits.index_fill(1, never, NEG_INF), chosen, sampling, seen)
        ranks = (logits > logits.gather(1, chosen)).sum(dim=1) + 1
        for row, rank in zip(_candidates(tokenizer, logits, drawn, chosen, n_others), ranks.tolist(), strict=True):
            tokens.append(Token(**vars(row[0]), text=texts[len(tokens)], rank=rank, others=tuple(row[1:])))
    return Explanation(tokenizer.decode(prompt, control=True), tuple(tokens), stop_id is not None, sampling)


def _candidates(
    tokenizer: ChatTokenizer, logits: torch.Tensor, drawn: torch.Tensor, chosen: torch.Tensor, n_others: int
) -> Iterator[list[Candidate]]:
    """Of each row the chosen token (chosen is (R, 1)), and then the likeliest of the others."""
    likely = logits.topk(min(n_others + 1, logits.shape[1]), dim=-1).indices
    ids = torch.cat((chosen, likely), dim=1)  # one of them most often twice
    logs, shares = logits.log_softmax(dim=-1).gather(1, ids), drawn.gather(1, ids)
    for row in zip(ids.tolist(), logs.tolist(), shares.tolist(), strict=True):
        made = [Candidate(i, token_form(tokenizer, i), log, share) for i, log, share in zip(*row, strict=True)]
        yield [made[0], *(one for one in made[1:] if one.token_id != made[0].token_id)][: n_others + 1]


def _logits(model: Model, prompt: Sequence[int], targets: Sequence[int]) -> Iterator[torch.Tensor]:
    """What each target was chosen from, (R, V) float32, some of them at a time; of the prompt only its last row."""
    ids = torch.tensor([[*prompt, *targets[:-1]]], device=model.device)
    first, n = len(prompt), ids.shape[1]
    if isinstance(model, CPUInferenceModel):
        cache = model.make_cache(1, n)
        yield model.next_logits(ids[:, :first], cache, [first])
        exact = model.weights == "float32"
        for part in ids[:, first:].split(AT_ONCE if exact else 1, dim=1):
            if part.shape[1]:  # with rounded weights a token alone takes a way of its own, as when it was drawn
                yield model.all_logits(part, cache)[0] if exact else model.next_logits(part, cache, [1])
        return
    places = torch.arange(n, device=model.device)
    hidden = model.hidden(ids, places[None], Causal(), places[first - 1 :])[0]  # (R, C)
    for rows in hidden.split(AT_ONCE):
        yield model.lm_head(rows).float()


def _seen(
    tokenizer: ChatTokenizer, prompt: Sequence[int], targets: Sequence[int], places: range, table_size: int
) -> torch.Tensor:
    """(R, V) bool: what stood before each of the targets at these places. Control tokens of the prompt don't count."""
    seen = torch.zeros(len(places), table_size, dtype=torch.bool)
    seen[:, list(prompt)] = True
    seen[:, list(tokenizer.control.values())] = False
    for row, place in enumerate(places):
        seen[row, list(targets[:place])] = True
    return seen


def _drawn(logits: torch.Tensor, targets: torch.Tensor, sampling: Sampling, seen: torch.Tensor | None) -> torch.Tensor:
    """The probabilities (R, V) with which `sampling` draws from logits (R, V); targets (R, 1) came of it."""
    logits = process_logits(logits, sampling, seen)
    if sampling.temperature != 0:
        return logits.softmax(dim=-1)
    best = argmax(logits)[:, None]
    # Between two that are as good as equal rounding decides, and that differs where tokens are read together.
    near = logits.gather(1, targets) > logits.gather(1, best) - MIN_LOGIT_GAP
    return torch.zeros_like(logits).scatter_(1, torch.where(near, targets, best), 1.0)


def token_form(tokenizer: ChatTokenizer, token_id: int) -> str:
    """A token as it can be shown by itself: spaces and line breaks visible, parts of characters as bytes."""
    if token_id >= tokenizer.vocab_size:
        return f"<padding {token_id}>"
    raw = tokenizer.decode_bytes([token_id], control=True, start=False)
    text = raw.decode("utf-8", errors="backslashreplace")
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def percent(p: float) -> str:
    """A probability with the digits that matter."""
    if p in (0, 1):
        return f"{p:.0%}"
    if p > 0.999:
        return ">99.9%"
    if p < 1e-5:
        return "<0.001%"
    return f"{p:.1%}" if p >= 0.01 else f"{100 * p:.2g}%"
