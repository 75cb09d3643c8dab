"""A step's examples as text that a person reads and a program turns back into the same examples.

    # the first step's examples
    # 8 examples, 1,234 tokens, 345 trained

    == 1. words: 143 tokens, 98 trained, weight 0.3
      <|user|>Write a story with cat, ball.<|assistant|>[[Once there was a cat.
      It had a ball.<|endoftext|>]]
    ids: [301, 87, 114, …]
    loss_mask: [[45, 143]]
    weight: 0.3

Of conversations that share their beginning, a line "prefix_branches: [120, 151]" says where in ids each goes on. Between [[ and ]]
stands what is trained. Text is indented and its control characters are written out (\\r as \\x0d), so that none of it can be
taken for a line of numbers, and a terminal that shows the file stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batching import Example

if TYPE_CHECKING:
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

_INDENT = "  "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # all but \n; the last two break lines as well
_HEAD = re.compile(r"== \d+\. (?P<kind>.*): [\d,]+ tokens, [\d,]+ trained, weight [^\s,]+(, .*)?")


def describe(examples: Sequence[Example], tokenizer: ChatTokenizer, title: str) -> str:
    """The examples under a title: each with its kind, size, weight, text, and all numbers that make a batch of it."""
    tokens = sum(len(example.ids) for example in examples)
    trained = sum(example.n_trained for example in examples)
    blocks = [f"# {_one_line(title)}\n# {len(examples):,} examples, {tokens:,} tokens, {trained:,} trained\n"]
    for number, example in enumerate(examples, 1):
        text = "".join(f"[[{part}]]" if is_target else part for part, is_target in marked_parts(example, tokenizer))
        lines = [f"== {number}. {headline(example)}"]
        lines += [_INDENT + _written_out(line) for line in text.split("\n")]
        lines += [f"{name}: {json.dumps(value)}" for name, value in _numbers(example).items()]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def headline(example: Example) -> str:
    """What an example is, in a line: "words: 143 tokens, 98 trained, weight 0.3" (the targets' mean, where they differ)."""
    weight = np.broadcast_to(example.weight, len(example.ids))[1:][example.loss_mask[1:]]
    several = f", {example.n_conversations} conversations that share their beginning" if example.prefix_branches else ""
    return (
        f"{_one_line(example.kind)}: {len(example.ids):,} tokens, {example.n_trained:,} trained, "
        f"weight {np.mean(weight) if len(weight) else 0:.3g}{several}"
    )


def marked_parts(example: Example, tokenizer: ChatTokenizer) -> Iterator[tuple[str, bool]]:
    """The example's text in parts, and whether each is trained; the first token never is, as nothing predicts it.

    Joined, the parts are what `tokenizer.decode(ids, control=True)` gives. A character whose bytes lie in several
    tokens belongs to the part of the last. An id that the tokenizer lacks is shown as <|no token 50300|>.
    """
    decoder = tokenizer.stream_decoder(control=True)
    part, is_target = "", False
    for place, token_id in enumerate(example.ids.tolist()):
        target = place > 0 and bool(example.loss_mask[place])
        if target != is_target and part:
            yield part, is_target
            part = ""
        is_target = target
        try:
            part += decoder.push(token_id)
        except UserError:
            part += f"<|no token {token_id}|>"
    if part := part + decoder.finish():
        yield part, is_target


def read_examples(text: str) -> list[Example]:
    """The examples that `describe` wrote: the same ids, targets and weights, so the same batch.

    Raises UserError for a text that it did not write.
    """
    examples: list[Example] = []
    lines = iter(text.split("\n"))
    for line in lines:
        if not (head := _HEAD.fullmatch(line)):
            continue
        found = {}
        for inner in lines:
            name, colon, value = inner.partition(": ")
            if colon and name in ("ids", "loss_mask", "prefix_branches", "weight"):
                found[name] = _parsed(inner, value)
            if name == "weight":
                break
        if set(found) - {"prefix_branches"} != {"ids", "loss_mask", "weight"}:
            raise UserError(f"{line!r}: its lines of ids, loss_mask and weight are not all there; take a whole file.")
        examples.append(_example(head["kind"], **found))
    return examples


def read_ids(text: str) -> list[list[int]]:
    """The token ids of each example that `describe` wrote."""
    return [example.ids.tolist() for example in read_examples(text)]


def _numbers(example: Example) -> dict[str, Any]:
    """All that a batch needs of an example: ids, where the trained ones begin and end, and weights."""
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
    loss_mask: list[list[int]],
    weight: float | list[float],
    prefix_branches: Sequence[int] = (),
) -> Example:
    mask = np.zeros(len(ids), dtype=bool)
    for begin, end in loss_mask:
        mask[begin:end] = True
    weights = np.array(weight, dtype=np.float32) if isinstance(weight, list) else weight
    return Example(np.array(ids, dtype=np.int32), mask, weights, kind, tuple(prefix_branches))


def _parsed(line: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        raise UserError(f"{line[:40]!r} … is no line of numbers; take the file as it was written.") from None


def _one_line(text: str) -> str:
    return _written_out(text.replace("\n", " "))


def _written_out(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
