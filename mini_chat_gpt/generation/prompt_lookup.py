"""Prompt lookup decoding: propose the next tokens from earlier text, and verify several of them in one forward pass.

If the last few tokens occurred before, the tokens that followed them there are a good guess at what comes next (Saxena 2023,
github.com/apoorvumang/prompt-lookup-decoding). The model reads the next token and this draft together, which takes little
longer than one token, and predicts after each of them. As long as the reply agrees with the draft, the predictions are
returned without another forward pass. Drafts are made only where they pay: the acceptance rate of past drafts decides.

`PromptLookupDecoder` replaces the model for a batch of one row. Greedy replies have the same tokens as without it. Predictions
from reading several tokens at once differ from those of reading one at a time by rounding only. Where rounding could change
the result, because the two highest logits differ by less than `MIN_LOGIT_GAP`, the drafted part is read again one token at a
time, which gives the plain loop's logits bit for bit. Sampled replies (temperature above 0) are equal up to such rounding.
With 8-bit weights, activations are quantized as well, which makes the differences far larger, so there are no drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch

from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.sampling import NEG_INF
from mini_chat_gpt.ops.kv_cache import KVCache

NGRAM = 3  # number of last tokens that must have occurred before
# Packed products read this many tokens, plus the one before them, in little more than the time of one.
MAX_DRAFT = 7
MIN_DRAFT = 3
# Far above the effect of rounding on a logit (3e-5 on trained models), and far below the gap of most decisions (only 1 in
# 1,000 is closer).
MIN_LOGIT_GAP = 1e-3
# The acceptance rate is a moving average over drafts. A draft of k tokens costs about 0.2·k times the time of one token.
MIN_ACCEPTANCE, MIN_ACCEPTANCE_LONG, INITIAL_ACCEPTANCE, ACCEPTANCE_DECAY = 0.3, 0.5, 0.4, 0.7
RETRY_AFTER = 24  # tokens without a draft


def supports_prompt_lookup(model: object) -> TypeGuard[CPUInferenceModel]:
    """Whether a model's predictions are precise enough for drafts not to change the reply."""
    return isinstance(model, CPUInferenceModel) and model.weights != "int8"


class PromptLookupDecoder:
    """A `CPUInferenceModel` with prompt lookup decoding, for a batch of one row.

    prompt       all ids before the reply
    suppressed   ids that are never sampled, (n,); their logits are set to −inf
    n_forward    number of forward passes of the model so far
    """

    def __init__(self, model: CPUInferenceModel, prompt: Sequence[int], suppressed: torch.Tensor) -> None:
        self.model, self.suppressed, self.n_forward = model, suppressed, 0
        self.ids = list(prompt)  # everything read or chosen so far
        # n-gram -> index of the token that followed its last occurrence
        self._next_index: dict[tuple[int, ...], int] = {}
        for end in range(NGRAM, len(self.ids)):
            self._next_index[tuple(self.ids[end - NGRAM : end])] = end
        self._draft: list[int] = []
        # (1 + len(draft), V): logits after the token that was read with the draft, and after each drafted token.
        self._draft_logits = torch.empty(0)
        self._n_returned = 0  # rows of `_draft_logits` that were returned
        self._n_exact = len(self.ids)  # the cache equals the plain loop's up to this index
        self._acceptance, self._last_draft = INITIAL_ACCEPTANCE, len(self.ids)

    def next_logits(self, ids: torch.Tensor, cache: KVCache, n_tokens: list[int]) -> torch.Tensor:
        """Logits (1, V) after the chosen token `ids` (1, 1). `cache.lengths` counts chosen tokens, not drafted ones."""
        token_id = int(ids)
        self._next_index[tuple(self.ids[-NGRAM:])] = len(self.ids)
        self.ids.append(token_id)
        if self._n_returned < len(self._draft_logits) and self._draft[self._n_returned - 1] == token_id:
            self._n_returned += 1
            cache.advance(n_tokens)
            logits = self._draft_logits[self._n_returned - 1 : self._n_returned]
        else:
            logits = self._forward(token_id, cache)
        if self._n_exact < len(self.ids) and self._is_close(logits):
            logits = self._read_again(cache)
        return logits

    def _forward(self, token_id: int, cache: KVCache) -> torch.Tensor:
        """Read the chosen token with a new draft, if there is one. Returns the logits (1, V) after the chosen token."""
        self._update_acceptance()
        position = cache.lengths[0]
        self.n_forward += 1
        self._draft = self._new_draft(cache.max_length - position - 1)
        if not self._draft:
            self._n_exact += self._n_exact == position
            logits = self.model.next_logits(torch.tensor([[token_id]]), cache, [1])
            return logits.index_fill_(1, self.suppressed, NEG_INF)
        self._last_draft = len(self.ids)
        self._draft_logits = self.model.all_logits(torch.tensor([[token_id, *self._draft]]), cache)[0]
        self._draft_logits.index_fill_(1, self.suppressed, NEG_INF)
        # Drafted tokens stay in the cache's memory, but count only when they are chosen.
        cache.lengths, self._n_returned = [position + 1], 1
        return self._draft_logits[:1]

    def _update_acceptance(self) -> None:
        """Take the fraction of the last draft that was accepted into the moving average, and discard the draft."""
        if self._draft:
            accepted = (self._n_returned - 1) / len(self._draft)
            self._acceptance = ACCEPTANCE_DECAY * self._acceptance + (1 - ACCEPTANCE_DECAY) * accepted
        self._draft_logits, self._n_returned = torch.empty(0), 0

    def _new_draft(self, room: int) -> list[int]:
        """The tokens that followed the last n-gram before, at most `room`, or [] if a draft is not likely to pay."""
        retry = len(self.ids) - self._last_draft >= RETRY_AFTER
        start = self._next_index.get(tuple(self.ids[-NGRAM:]))
        if start is None or (self._acceptance < MIN_ACCEPTANCE and not retry):
            return []
        length = MAX_DRAFT if self._acceptance >= MIN_ACCEPTANCE_LONG else MIN_DRAFT
        return self.ids[start : start + min(length, room)]

    def _is_close(self, logits: torch.Tensor) -> bool:
        """Whether rounding might have changed which token is the most likely one."""
        values = logits.numpy()[0]
        best = int(values.argmax())
        highest = values[best]
        values[best] = NEG_INF
        second = values.max()
        values[best] = highest
        return bool(highest - second < MIN_LOGIT_GAP)

    def _read_again(self, cache: KVCache) -> torch.Tensor:
        """Read the tokens that were read together one at a time. Returns the logits (1, V) after the last one."""
        cache.truncate(0, self._n_exact)
        for token_id in self.ids[self._n_exact :]:
            logits = self.model.next_logits(torch.tensor([[token_id]]), cache, [1])
            self.n_forward += 1
        self._n_exact, self._draft_logits, self._n_returned, self._draft = len(self.ids), torch.empty(0), 0, []
        return logits.index_fill_(1, self.suppressed, NEG_INF)
