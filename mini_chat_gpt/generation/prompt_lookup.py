"""Prompt lookup: a reply that copies from its prompt, or from itself, is read several tokens at a time.

Where the last few tokens stood before, what followed them there is a good guess at what follows now (Saxena 2023,
github.com/apoorvumang/prompt-lookup-decoding). The model reads the next token and the guess together, which takes little
longer than one token alone, and predicts after each of them; as far as the guess proves right, those predictions are served
without reading anything. Guesses are made where they pay: the share that proved right decides about the next ones.

`PromptLookupDecoder` stands in for the model of a single row. What it promises: greedy replies have the same tokens as without it.
Predictions from reading several tokens at once differ from those of reading them singly by rounding alone. Where that could
matter, as the two likeliest tokens are nearer to each other than `SAME` allows, all that was read together is read again,
token by token, and the decision is the plain loop's to the last bit. Drawn replies (temperature above 0) are the same up to
such rounding. 8-bit weights round activations too, which turns the last bit into the second digit: there nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.sampling import NEG_INF
from mini_chat_gpt.ops.kv_cache import KVCache

MATCH = 3  # so many tokens must have stood before
LONGEST = 7  # guessed at most: with the token before, what packed products take in little more than one row's time
SHORTEST = 3
# Far above what rounding does to a logit (3e-5 on trained models), far below what most decisions depend on (1 in 1,000 is
# nearer).
SAME = 1e-3
# A running mean of the share of guessed tokens that were right. A guess of k tokens costs about 0.2·k tokens' time.
WORTH_GUESSING, WORTH_GUESSING_FAR, FIRST_SHARE, KEEP = 0.3, 0.5, 0.4, 0.7
TRY_AGAIN_AFTER = 24  # tokens without a guess


def can_look_up(model: object) -> bool:
    """Whether a model's predictions are so exact that guessing changes nothing."""
    return isinstance(model, CPUInferenceModel) and model.weights != "int8"


class PromptLookupDecoder:
    """The `CPUInferenceModel` of one row that reads ahead; see the module.

    prompt   all ids before the reply
    never    ids that are never chosen, (n,); their logits are set to −inf
    n_read   so many times the model itself was asked; the rest was known already
    """

    def __init__(self, model: CPUInferenceModel, prompt: Sequence[int], never: torch.Tensor) -> None:
        self.model, self.never, self.n_read = model, never, 0
        self.ids = list(prompt)  # all that was read or chosen
        self._followed: dict[tuple[int, ...], int] = {}  # where that stands which followed these tokens the last time
        for end in range(MATCH, len(self.ids)):
            self._followed[tuple(self.ids[end - MATCH : end])] = end
        self._guess: list[int] = []  # not yet confirmed
        # (1 + n guessed, V): logits after the token read with the guess, and after each of it.
        self._known = torch.empty(0)
        self._served = 0  # of these
        self._exact = len(self.ids)  # the cache is to here as the plain loop would have left it
        self._share, self._last_guess = FIRST_SHARE, len(self.ids)

    def next_logits(self, ids: torch.Tensor, cache: KVCache, n_tokens: list[int]) -> torch.Tensor:
        """Logits (1, V) after the chosen token `ids` (1, 1). The cache counts the tokens chosen, not the guessed ones."""
        token_id = int(ids)
        self._followed[tuple(self.ids[-MATCH:])] = len(self.ids)
        self.ids.append(token_id)
        if self._served < len(self._known) and self._guess[self._served - 1] == token_id:
            self._served += 1
            cache.advance(n_tokens)
            logits = self._known[self._served - 1 : self._served]
        else:
            logits = self._read(token_id, cache)
        if self._exact < len(self.ids) and self._undecided(logits):
            logits = self._read_singly(cache)
        return logits

    def _read(self, token_id: int, cache: KVCache) -> torch.Tensor:
        self._judge_guess()
        at, self.n_read = cache.lengths[0], self.n_read + 1
        self._guess = self._new_guess(cache.max_length - at - 1)
        if not self._guess:
            self._exact += self._exact == at
            return self.model.next_logits(torch.tensor([[token_id]]), cache, [1]).index_fill_(1, self.never, NEG_INF)
        self._last_guess = len(self.ids)
        self._known = self.model.all_logits(torch.tensor([[token_id, *self._guess]]), cache)[0]
        self._known.index_fill_(1, self.never, NEG_INF)
        cache.lengths, self._served = [at + 1], 1
        return self._known[:1]

    def _judge_guess(self) -> None:
        if self._guess:
            self._share = KEEP * self._share + (1 - KEEP) * (self._served - 1) / len(self._guess)
        self._known, self._served = torch.empty(0), 0

    def _new_guess(self, room: int) -> list[int]:
        """What followed the last tokens before, if a guess is likely to be worth its time."""
        rested = len(self.ids) - self._last_guess >= TRY_AGAIN_AFTER
        start = self._followed.get(tuple(self.ids[-MATCH:]))
        if start is None or (self._share < WORTH_GUESSING and not rested):
            return []
        far = LONGEST if self._share >= WORTH_GUESSING_FAR else SHORTEST
        return self.ids[start : start + min(far, room)]

    def _undecided(self, logits: torch.Tensor) -> bool:
        """Whether rounding might have changed which token is the likeliest."""
        values = logits.numpy()[0]
        best = int(values.argmax())
        highest = values[best]
        values[best] = NEG_INF
        second = values.max()
        values[best] = highest
        return bool(highest - second < SAME)

    def _read_singly(self, cache: KVCache) -> torch.Tensor:
        """Read again, token by token, what was read together; returns the logits after the last."""
        cache.truncate(0, self._exact)
        for token_id in self.ids[self._exact :]:
            logits = self.model.next_logits(torch.tensor([[token_id]]), cache, [1])
            self.n_read += 1
        self._exact, self._known, self._served, self._guess = len(self.ids), torch.empty(0), 0, []
        return logits.index_fill_(1, self.never, NEG_INF)
