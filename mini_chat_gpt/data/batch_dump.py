"""The examples of a step as text, for people to read and for programs to restore the same examples.

    # the first step's examples
    # 8 examples, 1,234 tokens, 345 trained (28%)

    == 1. words: 143 tokens, 98 trained, weight 0.3
      <|user|>Write a story with cat, ball.<|assistant|>[[Once there was a cat.
      It had a ball.<|endoftext|>]]
    ids: [301, 87, 114, …]
    loss_mask: [[45, 143]]
    weight: 0.3

[[ and ]] enclose the targets, and `loss_mask` has their spans. For conversations that share a prefix, a line
"prefix_branches: [120, 151]" says where in ids each of them continues. Text is indented and its control characters are escaped
(\\r as \\x0d), so that no text looks like a line of numbers, and none of it affects a terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import parse_json
from mini_chat_gpt.data.batching import Example

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

_INDENT = "  "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # all but \n; the last two break lines as well
_HEADLINE = re.compile(r"== \d+\. (?P<kind>.*): [\d,]+ tokens, [\d,]+ trained, weight [^\s,]+(, .*)?")


def describe(examples: Sequence[Example], tokenizer: ChatTokenizer, title: str) -> str:
    """The examples under a title, each with its kind, size, weight, text, and all numbers that a batch needs."""
    blocks = [f"# {_one_line(title)}\n# {size_of(examples)}\n"]
    for number, example in enumerate(examples, 1):
        text = "".join(f"[[{part}]]" if is_target else part for part, is_target in marked_parts(example, tokenizer))
        lines = [f"== {number}. {headline(example)}"]
        lines += [_INDENT + _escaped(line) for line in text.split("\n")]
        lines += [f"{name}: {json.dumps(value)}" for name, value in _numbers(example).items()]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def size_of(examples: Sequence[Example]) -> str:
    """ "8 examples, 1,234 tokens, 345 trained (28%)"."""
    tokens = sum(len(example.ids) for example in examples)
    trained = sum(example.n_trained for example in examples)
    several = "example" if len(examples) == 1 else "examples"
    return f"{len(examples):,} {several}, {tokens:,} tokens, {trained:,} trained ({trained / max(1, tokens):.0%})"


def headline(example: Example) -> str:
    """One line about an example: "words: 143 tokens, 98 trained, weight 0.3". Different weights are averaged over the targets."""
    weight = example.weights[1:][example.loss_mask[1:]]
    n_branches = len(example.prefix_branches)
    several = f", {n_branches} conversations with a shared prefix" if n_branches else ""
    return (
        f"{_one_line(example.kind)}: {len(example.ids):,} tokens, {example.n_trained:,} trained, "
        f"weight {np.mean(weight) if len(weight) else 0:.3g}{several}"
    )


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of several where only together they decode to a character."""

    ids: tuple[int, ...]
    text: str
    is_target: bool
    is_control: bool


def token_pieces(example: Example, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """The example token by token. The first token never is a target, because nothing predicts it.

    The texts, concatenated, are `tokenizer.decode(ids, control=True)`. A character whose bytes are in several tokens is a target if
    the last one is. An id that the tokenizer lacks is shown as <|no token 50300|>.
    """
    decoder, control_ids = tokenizer.stream_decoder(control=True), set(tokenizer.control.values())
    ids: list[int] = []
    is_target = False
    for index, token_id in enumerate(example.ids.tolist()):
        ids.append(token_id)
        is_target = index > 0 and bool(example.loss_mask[index])
        try:
            text = decoder.push(token_id)
        except UserError:
            text = f"<|no token {token_id}|>"
        if text:
            yield Piece(tuple(ids), text, is_target, token_id in control_ids)
            ids = []
    if (text := decoder.finish()) or ids:
        yield Piece(tuple(ids), text, is_target, False)


def marked_parts(example: Example, tokenizer: ChatTokenizer) -> Iterator[tuple[str, bool]]:
    """The text of an example in parts, and whether each consists of targets."""
    for is_target, pieces in groupby(token_pieces(example, tokenizer), key=lambda piece: piece.is_target):
        yield "".join(piece.text for piece in pieces), is_target


def read_examples(text: str) -> list[Example]:
    """Restore the examples from a text that `describe` wrote: the same ids, targets and weights.

    Raises UserError for any other text.
    """
    examples: list[Example] = []
    lines = iter(text.split("\n"))
    for line in lines:
        if not (head := _HEADLINE.fullmatch(line)):
            continue
        fields = {}
        for inner in lines:
            name, colon, value = inner.partition(": ")
            if colon and name in _LINES:
                fields[name] = _parsed(inner, name, value)
            if name == "weight":
                break
        if set(fields) - {"prefix_branches"} != {"ids", "loss_mask", "weight"}:
            raise UserError(f"{line!r}: a line of ids, loss_mask or weight is missing; use the complete file.")
        examples.append(_example(head["kind"], **fields))
    return examples


def read_ids(text: str) -> list[list[int]]:
    """The token ids of each example in a text that `describe` wrote."""
    return [example.ids.tolist() for example in read_examples(text)]


def _numbers(example: Example) -> dict[str, Any]:
    """What a batch needs of an example: ids, spans of the targets, and weights."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], example.loss_mask, [False]]).astype(np.int8)))
    weight = example.weight
    return {
        "ids": example.ids.tolist(),
        "loss_mask": edges.reshape(-1, 2).tolist(),
        **({"prefix_branches": list(example.prefix_branches)} if example.prefix_branches else {}),
        "weight": weight.tolist() if isinstance(weight, np.ndarray) else float(weight),
    }


def _example(
    kind: str,
    ids: list[int],
    loss_mask: list[tuple[int, int]],
    weight: float | list[float],
    prefix_branches: Sequence[int] = (),
) -> Example:
    starts = [0, *prefix_branches, len(ids)]
    spans_fit = all(0 <= begin < end <= len(ids) for begin, end in loss_mask)
    if not spans_fit or starts != sorted(starts) or (isinstance(weight, list) and len(weight) != len(ids)):
        raise UserError(
            f"The numbers of an example of {len(ids)} ids don't fit together; use the file as it was written."
        )
    mask = np.zeros(len(ids), dtype=bool)
    for begin, end in loss_mask:
        mask[begin:end] = True
    weights = np.array(weight, dtype=np.float32) if isinstance(weight, list) else weight
    return Example(np.array(ids, dtype=np.int32), mask, weights, kind, tuple(prefix_branches))


_Id = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Weight = Annotated[float, Field(strict=True)]  # of a non-finite step it may be NaN
_LINES: dict[str, Any] = {
    "ids": list[_Id],
    "loss_mask": list[tuple[_Id, _Id]],
    "prefix_branches": list[_Id],
    "weight": _Weight | list[_Weight],
}
"""The structure of each line of numbers."""


def _parsed(line: str, name: str, value: str) -> Any:
    return parse_json(value, _LINES[name], f"{line[:40]!r} …", "use the file as it was written")


def _one_line(text: str) -> str:
    return _escaped(text.replace("\n", " "))


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
