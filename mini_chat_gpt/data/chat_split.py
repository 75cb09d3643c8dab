"""Which chats are held out, which are equal, and which are in both parts: by digests of their texts.

A digest has 12 bytes. Millions of chats are compared by an array of them, (n,) S12, without their texts.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from mini_chat_gpt.data.chat_files import Conversation

KEY = np.dtype("S12")
"""A digest. NumPy removes zeros at the end of single items, but compares whole ones correctly."""


def content_key(conversation: Conversation) -> bytes:
    """Equal for conversations with the same text, ignoring case and white space."""
    texts: list[object] = [[m.role, _normalized(m.content)] for m in conversation.messages]
    extras = [[m.reasoning, m.tool_calls] for m in conversation.messages if m.reasoning or m.tool_calls]
    # Without these the key is that of earlier versions, which decides what is held out.
    if extras or conversation.tools:
        texts += [extras, conversation.tools]
    return _digest(json.dumps(texts))


def prompt_key(conversation: Conversation) -> bytes:
    """Equal for conversations that begin with the same question."""
    return _digest(_normalized(next((m.content for m in conversation.messages if m.role == "user"), "")))


def held_out_part(keys: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(n,) bool: which chats are held out. It depends on the texts and the seed, not on files or positions.

    `share` of the distinct chats is held out, at least one if there are two or more. Equal chats stay together.
    """
    groups, first = equal_groups(keys)
    n_distinct = len(first)
    n = min(n_distinct - 1, max(1, round(share * n_distinct))) if share > 0 and n_distinct else 0
    if n <= 0:
        return np.zeros(len(keys), dtype=bool)
    digests, size, drawn = keys.tobytes(), KEY.itemsize, bytearray()
    for begin in (first * size).tolist():
        drawn += _digest(f"{seed}/{digests[begin : begin + size].hex()}")
    chosen = np.zeros(n_distinct, dtype=bool)
    chosen[_sorted(np.frombuffer(drawn, KEY))[:n]] = True
    return chosen[groups]


def equal_groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((n,) number of the group of equal keys that each one belongs to, (groups,) index of the first key of each group)."""
    order = _sorted(keys)
    begins = np.ones(len(keys), dtype=bool)
    begins[1:] = keys[order[1:]] != keys[order[:-1]]
    groups = np.empty(len(keys), dtype=np.int64)
    groups[order] = np.cumsum(begins) - 1
    return groups, order[begins]  # the order is stable


def repeated(keys: np.ndarray) -> np.ndarray:
    """(n,) index of the first chat with the same text; its own index for that chat itself."""
    groups, first = equal_groups(keys)
    return first[groups]


def is_in(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) bool: which keys are among the others."""
    groups, first = equal_groups(np.concatenate([others, keys]))
    return first[groups[len(others) :]] < len(others)


def _sorted(keys: np.ndarray) -> np.ndarray:
    """(n,) indices that sort the keys; equal ones stay in their order. Sorting numbers is ten times faster than sorting texts."""
    parts = np.ascontiguousarray(keys).view(np.dtype([("high", ">u8"), ("low", ">u4")]))
    return np.lexsort((parts["low"], parts["high"]))


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=KEY.itemsize).digest()
