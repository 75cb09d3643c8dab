"""From a record to tasks: a prompt and the answer to learn, for every kind that the record supports.

Adding a kind is adding one function with `@task_kind("name")` here, and its phrasings to `data/task_phrasings.yaml`. A kind
asks only what the record answers beyond doubt, and gives None otherwise: a wrong answer teaches more than a missing one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from mini_chat_gpt.common.errors import UserError, nearest
from mini_chat_gpt.tinystories.facts import first_speech, is_silent, sentence_spans, stated_moral
from mini_chat_gpt.tinystories.main_character import find_word, main_character
from mini_chat_gpt.tinystories.prompts import (
    TemplateSampler,
    feature_list,
    follow_up_prompt,
    story_prompt,
    writing_prompt,
)
from mini_chat_gpt.tinystories.reasons import stated_reasons
from mini_chat_gpt.tinystories.records import ENDING_UNKNOWN, StoryRecord

Span = tuple[int, int]


@dataclass(frozen=True)
class Task:
    """What a user asks and what the assistant should answer."""

    kind: str
    prompt: str
    target: str
    story_span: Span | None
    """(start, end) of the story in the prompt; None where the story is the answer."""
    answer: str | None = None
    """The bare answer, for scoring: "yes" or "no", a name, or the words to use ("cat, tree, happy")."""
    evidence: Span | None = None
    """(start, end) of the part of the prompt that the answer rests on, which shortening must leave."""
    required: tuple[str, ...] = ()
    """Words that the answer has to use, in any of their forms."""
    sentence: str | None = None
    """A sentence that the answer has to contain."""
    follow_up: str | None = None
    """The same question for a conversation in which the story stands already; None where the task can't come later."""

    @property
    def question_first(self) -> bool:
        """Whether the prompt's question (or whatever else it asks for) comes before its story, if it has one."""
        return self.story_span is None or not self.prompt[self.story_span[1] :]

    @property
    def category(self) -> str:
        """The kind, divided by answer for yes/no questions ("ending/no"), so that both answers can be balanced."""
        return f"{self.kind}/{self.answer}" if self.kind in YES_NO_KINDS else self.kind


TaskMaker = Callable[[StoryRecord, TemplateSampler], "Task | None"]
TASK_KINDS: dict[str, TaskMaker] = {}
YES_NO_KINDS: set[str] = set()


def task_kind(name: str, yes_no: bool = False) -> Callable[[TaskMaker], TaskMaker]:
    """Register a function as the maker of one kind of task; `yes_no` if its answers are "yes" and "no"."""

    def register(maker: TaskMaker) -> TaskMaker:
        TASK_KINDS[name] = maker
        if yes_no:
            YES_NO_KINDS.add(name)
        return maker

    return register


def check_kinds(kinds: Iterable[str], where: str, more: Iterable[str] = ()) -> None:
    """Raise UserError for a kind that is neither a record's nor one of `more`; `where` is who named it ("--kinds")."""
    known = [*TASK_KINDS, *more]
    for kind in kinds:
        if kind not in known:
            raise UserError(
                f"{where}: {kind!r} is no kind of task{nearest(kind, known)}; the kinds are {', '.join(known)}."
            )


def categories() -> list[str]:
    """What `Task.category` can be, in the registry's order."""
    return [
        name for kind in TASK_KINDS for name in ((f"{kind}/yes", f"{kind}/no") if kind in YES_NO_KINDS else (kind,))
    ]


def generate_tasks(record: StoryRecord, seed: int, kinds: Iterable[str] | None = None) -> list[Task]:
    """One task of every kind that the record supports (of those in `kinds`, if given), in the registry's order.

    Phrasings and variants depend on the record's text and `seed` alone; pass another seed in each epoch.
    """
    choose = TemplateSampler(record, seed)
    makers = TASK_KINDS.items() if kinds is None else [(kind, TASK_KINDS[kind]) for kind in kinds]
    made = (maker(record, choose) for _, maker in makers)
    return [task for task in made if task is not None]


def _about(
    kind: str,
    record: StoryRecord,
    choose: TemplateSampler,
    target: str,
    answer: str | None = None,
    evidence: Span | None = None,
    **slots: str,
) -> Task:
    """A task that shows the story; `evidence` is a span of the story."""
    prompt, span = story_prompt(kind, record.story, choose, **slots)
    if evidence is not None:
        evidence = (span[0] + evidence[0], span[0] + evidence[1])
    return Task(kind, prompt, target, span, answer, evidence, follow_up=follow_up_prompt(kind, choose, **slots))


@task_kind("summary")
def _summary(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    return _about("summary", record, choose, record.summary) if record.summary else None


@task_kind("what_happened")
def _what_happened(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    return _about("what_happened", record, choose, record.summary) if record.summary else None


@task_kind("moral")
def _moral(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    """Where the record is labelled to have a moral, and story or summary says what it is."""
    if "MoralValue" not in record.features:
        return None
    if found := stated_moral(record.story):
        return _about("moral", record, choose, found[0], evidence=found[1])
    if record.summary and (found := stated_moral(record.summary)):
        return _about("moral", record, choose, found[0])
    return None


@task_kind("main_character")
def _main_character(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    name = _main_character_of(record.story)
    if name is None:
        return None
    evidence = find_word(record.story, name)
    return _about("main_character", record, choose, f"The main character is {name}.", name, evidence)


@lru_cache(maxsize=64)  # several questions about one story follow each other
def _main_character_of(story: str) -> str | None:
    return main_character(story)


@task_kind("ending", yes_no=True)
def _ending(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    """From the labels alone: a labelled record without BadEnding ends well."""
    if not record.features or ENDING_UNKNOWN in record.features:
        return None
    if "BadEnding" in record.features:
        return _about("ending", record, choose, "No, the story does not have a happy ending.", "no")
    return _about("ending", record, choose, "Yes, the story has a happy ending.", "yes")


@task_kind("dialogue", yes_no=True)
def _dialogue(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    """Where the story's text leaves no doubt, and the label (if the record has labels) says the same."""
    labelled = "Dialogue" in record.features if record.features else None
    if labelled is not False and (speech := first_speech(record.story)):
        return _about("dialogue", record, choose, "Yes, the characters talk to each other.", "yes", evidence=speech)
    if labelled is not True and is_silent(record.story):
        return _about("dialogue", record, choose, "No, the characters do not talk to each other.", "no")
    return None


@task_kind("why")
def _why(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    reasons = stated_reasons(record.story)
    if not reasons:
        return None
    reason = choose.one(reasons, "reason")
    return _about("why", record, choose, reason.answer, evidence=reason.span, question=reason.question)


_LONG_WORD = re.compile(r"(?<![\w'’-])[a-z]{4,}(?![\w'’-])")
_QUOTABLE = range(15, 161)  # characters


@lru_cache(maxsize=64)  # several questions about one story follow each other
def _quotable(story: str) -> tuple[Span, ...]:
    """The story's sentences that are neither too short nor too long to be copied."""
    return tuple(span for span in sentence_spans(story) if span[1] - span[0] in _QUOTABLE)


@task_kind("quote")
def _quote(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    """Find the only sentence with a word. Every story has some: it is how a small model learns to look up and copy."""
    story = record.story
    counts = Counter(_LONG_WORD.findall(story.lower()))
    once = {word for word, times in counts.items() if times == 1}
    found = [(span, word) for span in _quotable(story) for word in _LONG_WORD.findall(story, *span) if word in once]
    if not found:
        return None
    span, word = choose.one(found, "quote")
    return _about("quote", record, choose, story[slice(*span)], evidence=span, word=word)


_LATER_WORD = re.compile(r"(?<= )[a-z]{2,}(?= )")
_OTHER_SIGNS = re.compile(r'["“”:;]')


def _third_last_word_end(text: str) -> int:
    parts = text.rsplit(maxsplit=2)
    return len(parts[0]) if len(parts) == 3 else 0


@task_kind("copyedit")
def _copyedit(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    """Give words the capital and the period of a sentence: " stay" and "Stay" are different tokens, and a small model that
    has never written the second one can't answer with it.
    """
    sentences = [record.story[slice(*span)] for span in _quotable(record.story)]
    plain = [sentence[:-1] for sentence in sentences if sentence.endswith(".") and not _OTHER_SIGNS.search(sentence)]
    starts = [
        (match.start(), sentence)
        for sentence in plain
        for match in _LATER_WORD.finditer(sentence, 0, _third_last_word_end(sentence) + 1)
    ]
    if not starts:
        return None
    start, sentence = choose.one(starts, "copyedit")
    rest = sentence[start:]
    prompt, span = story_prompt("copyedit", rest, choose)
    return Task("copyedit", prompt, f"{rest[0].upper()}{rest[1:]}.", span, evidence=span, follow_up=prompt)


@task_kind("words")
def _words(record: StoryRecord, choose: TemplateSampler) -> Task | None:
    """Write the story: with the given words, and in half of the cases each with a sentence, features, a summary to heed."""
    optional = {
        "features": feature_list(record.features),
        "sentence": record.random_sentence or "",
        "summary": record.summary or "",
    }
    there = [name for name, value in optional.items() if value]
    drawn = [name for name in there if choose.number("with " + name) % 2]
    slots = {name: optional[name] for name in drawn}
    if record.words:
        slots["words"] = ", ".join(record.words)
    elif not there:
        return None
    elif not slots:
        name = choose.one(there, "without words")
        slots = {name: optional[name]}
    prompt = writing_prompt(choose, **slots)
    answer = ", ".join(record.words) or None
    return Task("words", prompt, record.story, None, answer, required=record.words, sentence=slots.get("sentence"))
