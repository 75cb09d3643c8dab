"""Compare the values that two readers take from the same files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class Near:
    """An array that is compared with a tolerance, as the second reader computes in another order."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array, dtype=np.float64)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, including the types of booleans and the bits of arrays."""
    return difference(one, other) == ""


def difference(one: Any, other: Any, path: str = "") -> str:
    """The first difference of two values, "" if there is none."""
    if isinstance(one, Near) or isinstance(other, Near):
        left, right = (value.array if isinstance(value, Near) else np.asarray(value) for value in (one, other))
        near = left.shape == right.shape and np.allclose(left, right, rtol=1e-4, atol=1e-5, equal_nan=True)
        return "" if near else f"{path}: arrays differ"
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        equal = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return "" if equal else f"{path}: arrays differ ({one.dtype} {one.shape}, {other.dtype} {other.shape})"
    if isinstance(one, dict) and isinstance(other, dict):
        if unpaired := one.keys() ^ other.keys():
            return f"{path}: keys {sorted(map(str, unpaired))[:3]}"
        return next((found for key in one if (found := difference(one[key], other[key], f"{path}.{key}"))), "")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{path}: {len(one)} and {len(other)} items"
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for i, pair in pairs if (found := difference(*pair, f"{path}.{i}"))), "")
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return ""
    if isinstance(one, bool) != isinstance(other, bool) or type(one) is np.ndarray or one != other:
        return f"{path}: {one!r:.200} and {other!r:.200}"
    return ""
