"""Held-out parts of a recipe: files of prompts that no training part has, and how the replies to them are judged.

    held_out:                      in prompts.yaml
      - file: held_out.jsonl       in the recipe's folder; chats in any form that training accepts, or prompts without a reply
        shows: the right section   what the part measures
        labels: [sports, other]    a reply is exactly one of these words, and that of the record
        exact: true                it equals the record's reply, apart from case, white space and a period at its end
        key_facts: answers         the record's key with phrases of a right reply: a list (any of them), or a list of such lists
                                   (one of each)
        refuses: harmful           the record's key that says whether a right reply declines; or true or false for all records
        polite: true               it begins with one of the polite signs; a reply that must decline does not
        regex, max_words, is_json  as for single prompts
        checklist: true            it passes the checks of the recipe's checklist.py
        overlap: [bleu, chrf]      overlap with the record's reply, in addition: bleu, rouge, chrf
        group_by: hard             the record's key by which results are also listed separately
        max_new_tokens: 160        maximum length of a reply
        distinct_by: question      the record's key with the text that no training record has, if it is not the whole prompt
        trained_on: train.jsonl    use the part only if training uses this file; for recipes with several training files

Each check says yes or no for a reply. A reply is right if all of its checks say yes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.setting_types import Count, one_as_list
from mini_chat_gpt.data.json_records import BadRecord
from mini_chat_gpt.data.record_fields import KeyNames
from mini_chat_gpt.data.record_files import read_records
from mini_chat_gpt.data.record_forms import read_record
from mini_chat_gpt.evaluation.refusals import declines, sign_pattern
from mini_chat_gpt.evaluation.reply_checks import ReplyChecks, Texts, form_checks

RIGHT_LABEL, VALID_LABEL, EXACT, KEY_FACTS = "right label", "valid label", "exact reply", "key facts"
DECLINES, ANSWERS = "declines", "does not decline"
POLITE, NOT_POLITE = "begins politely", "no polite opening on a refusal"
Overlap = Literal["bleu", "rouge", "chrf"]
CodeChecks = Callable[[Mapping[str, Any], str, str], Mapping[str, bool]]
"""(record, reply, place) -> the checks of checklist.py"""


class HeldOut(ReplyChecks):
    """A file of held-out records, and how the replies to them are judged."""

    file: str
    """The file, in the recipe's folder."""
    shows: str = "reply"
    """What the part measures."""
    labels: Texts = Field(default_factory=list)
    """All possible replies; the right one is the record's."""
    exact: bool = False
    """Whether a right reply equals the record's."""
    key_facts: str | None = None
    """The record's key that has phrases of a right reply."""
    refuses: str | None = None
    """The record's key that says whether a right reply declines; true or false for all records."""
    polite: bool = False
    """Whether a right reply begins politely."""
    checklist: bool = False
    """Whether checklist.py judges the replies."""
    overlap: Annotated[list[Overlap], BeforeValidator(one_as_list)] = Field(default_factory=list)
    """Measures of the overlap with the record's reply."""
    group_by: str | None = None
    """The record's key by which results are also listed separately."""
    max_new_tokens: Count = 160
    """Maximum length of a reply."""
    distinct_by: str | None = None
    """The record's key with the text that no training record may have, or nearly (null: the prompt)."""
    trained_on: str | None = None
    """Use the part only if training uses this file."""

    @property
    def is_judged(self) -> bool:
        """Whether there is any check or measure."""
        simple = self.labels or self.exact or self.key_facts or self.polite or self.checklist or self.overlap
        return bool(simple or self.refuses is not None or self.regex or self.max_words or self.is_json)


@dataclass(frozen=True)
class Item:
    """One held-out record."""

    prompt: tuple[Message, ...]
    expected: str | None
    """The reply in the record; None if it has none."""
    record: Mapping[str, Any]
    place: str

    @property
    def text(self) -> str:
        """The prompt as one text."""
        return "\n\n".join(message.content for message in self.prompt)


def read_items(path: Path, keys: Mapping[str, str | None] | None = None) -> list[Item]:
    """The records of a held-out file; `keys` is `chats.keys`. Raises UserError for a file or a record that can't be used."""
    if not path.is_file():
        raise UserError(f"There is no held-out file {path}, which prompts.yaml names; write it, or remove the entry.")
    names = KeyNames(keys)
    items = []
    for place, record in read_records(path):
        try:
            items.append(_item(record, names, f"{path}, {place}"))
        except (BadRecord, UserError) as error:
            raise UserError(f"{path}, {place}: {str(error).rstrip('.')}.") from None
    if not items:
        raise UserError(f"{path} has no records; write held-out prompts into it, one in each line.")
    return items


def _item(record: Any, names: KeyNames, place: str) -> Item:
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, dict):
        return Item(tuple(read_record(record, names).messages), None, {}, place)  # raises the error for it
    try:
        *prompt, reply = read_record(record, names).messages
        return Item(tuple(prompt), reply.content, record, place)
    except BadRecord:
        # Perhaps a prompt without a reply, which training can't use. If not, the error of the second reading says why.
        *prompt, _ = read_record(_with_reply(record), names).messages
        return Item(tuple(prompt), None, record, place)


def _with_reply(record: Mapping[str, Any]) -> dict[str, Any]:
    messages = record.get("messages")
    if isinstance(messages, list):
        return {**record, "messages": [*messages, {"role": "assistant", "content": "-"}]}
    return {**record, "response": "-"}


def reply_checks(
    part: HeldOut,
    item: Item,
    reply: str,
    polite_signs: Sequence[str],
    refusal_signs: Sequence[str],
    code_checks: CodeChecks | None = None,
) -> dict[str, bool]:
    """Check -> whether the reply to a record meets it. Raises UserError for a record without a key that a check needs."""
    met: dict[str, bool] = {}
    if part.labels:
        met[VALID_LABEL] = reply.strip() in part.labels
        met[RIGHT_LABEL] = reply.strip() == _expected(item, "labels").strip()
    if part.exact:
        met[EXACT] = _plain(reply) == _plain(_expected(item, "exact"))
    if part.key_facts is not None:
        phrases = _phrases(item, part.key_facts)
        met[KEY_FACTS] = all(sign_pattern(alternatives).search(reply) for alternatives in phrases)
    must_decline = None if part.refuses is None else _must_decline(item, part.refuses)
    if must_decline is not None:
        met[DECLINES if must_decline else ANSWERS] = declines(reply, refusal_signs) == must_decline
    if part.polite:
        is_polite = bool(sign_pattern(polite_signs, start=True).search(reply))
        met[NOT_POLITE if must_decline else POLITE] = is_polite != bool(must_decline)
    met |= form_checks(part, reply)
    if part.checklist and code_checks is not None:
        met |= code_checks(item.record, reply, item.place)
    return met


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _expected(item: Item, check: str) -> str:
    if item.expected is None:
        raise UserError(f"{item.place}: it has no reply, which {check} in prompts.yaml needs; add it to the record.")
    return item.expected


def _value(item: Item, key: str, check: str) -> Any:
    if (value := item.record.get(key)) is None:
        raise UserError(f'{item.place}: it has no "{key}", which {check} in prompts.yaml names; add it to the record.')
    return value


def _phrases(item: Item, key: str) -> list[list[str]]:
    value = _value(item, key, "key_facts")
    if isinstance(value, str):  # a table's column has the alternatives as one text, perhaps as JSON
        value = _json_list(value) or [one.strip() for one in value.split("|")]
    value = value if isinstance(value, list) else [value]
    lists = value if value and all(isinstance(one, list) for one in value) else [value]
    if not all(one and all(isinstance(text, str) and text.strip() for text in one) for one in lists):
        raise UserError(f'{item.place}: "{key}" is {short(value)}; it must be a list of phrases, or of such lists.')
    return lists


def _json_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else None


def _must_decline(item: Item, refuses: str) -> bool:
    value = refuses if refuses in ("true", "false") else _value(item, refuses, "refuses")
    text = str(value).strip().lower()
    if text not in ("true", "false", "yes", "no", "1", "0"):
        raise UserError(f'{item.place}: "{refuses}" is {short(value)}; it must be true or false.')
    return text in ("true", "yes", "1")


def openings(replies: Iterable[str], polite_signs: Sequence[str]) -> Iterator[str]:
    """The polite sign that each polite reply begins with, in lower case."""
    pattern = sign_pattern(polite_signs, start=True)
    for reply in replies:
        if match := pattern.search(reply):
            yield match[0].strip().lower()
