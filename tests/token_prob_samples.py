"""Explanations of replies that no model gave, for tests."""

from dataclasses import replace

import torch
from tiny import GREEDY

from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.token_probs import Candidate, Explanation, Token


def explanation_of(probabilities: list[float], text: str = "", sampling: Sampling = GREEDY) -> Explanation:
    """Tokens t0, t1, ... of these probabilities; the last has this text."""
    logs = torch.tensor(probabilities, dtype=torch.float64).log().tolist()
    others = tuple(Candidate(i, f"·other{i}", -3.0 - i, 0.0) for i in range(5))
    tokens = [Token(n, f"t{n}", log, 1.0, f" t{n}", 1, others) for n, log in enumerate(logs)]
    if text:
        tokens[-1] = replace(tokens[-1], text=text, shown=text if text.isprintable() else "t")
    return Explanation("<|user|>Hi<|assistant|>", tuple(tokens), False, sampling)
