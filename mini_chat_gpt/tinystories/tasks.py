"""Turn a record into tasks: a prompt and its answer, for every kind of task that the record supports.

To add a kind, add one function with `@task_kind("name")` here and its prompt templates to `assets/task_prompts.yaml`. A kind
makes a task only if the record answers the question beyond doubt, and returns None otherwise: a wrong answer in the training
data does more harm than a missing one.
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
from mini_chat_gpt.tinystories.word_forms import first_use

Span = tuple[int, int]


@dataclass(frozen=True)
class Task:
    """What the user asks and what the assistant should answer. A span is (start, end) in characters."""

    kind: str
    prompt: str
    target: str
    story_span: Span | None  # the story in the prompt; None if the story is the answer
    # The bare answer, for scoring: "yes" or "no", a name, or the required words ("cat, tree, happy").
    answer: str | None = None
    evidence: Span | None = None  # the part of the prompt that supports the answer, which truncation must keep
    required: tuple[str, ...] = ()  # words that the answer must contain, in any of their forms
    sentence: str | None = None  # a sentence that the answer must contain
    # The question for a conversation that has already shown the story; None: it can't be a later turn.
    follow_up: str | None = None

    @property
    def question_first(self) -> bool:
        """Whether the question comes before the story in the prompt. True for a prompt without a story."""
        # If no text follows the story in the prompt, the question must precede it.
        return self.story_span is None or not self.prompt[self.story_span[1] :]

    @property
    def category(self) -> str:
        """The kind, split by answer for yes/no questions ("ending/no"), so that both answers can be balanced."""
        return f"{self.kind}/{self.answer}" if self.kind in YES_NO_KINDS else self.kind

    @property
    def answer_spans(self) -> tuple[Span, ...]:
        """The parts of the target that decide whether it is right. All other words only phrase it.

        In a story: the first use of each required word, in any form, and the required sentence. In an answer about a story: its
        first word, which is "Yes" or "No" or selects where copying begins, and the requested name.
        """
        spans = [span for word in self.required if (span := first_use(self.target, word))]
        if self.sentence and (start := self.target.find(self.sentence)) >= 0:
            spans.append((start, start + len(self.sentence)))
        if self.story_span is not None:
            spans.append((0, len(self.target.split(maxsplit=1)[0])))
            # The answer of a yes/no question is the first word. Of other kinds it is a part of the target.
            if self.kind not in YES_NO_KINDS and self.answer and (start := self.target.find(self.answer)) >= 0:
                spans.append((start, start + len(self.answer)))
        return tuple(spans)


TaskMaker = Callable[[StoryRecord, TemplateSampler], "Task | None"]
# Both are filled by the decorator below.
TASK_KINDS: dict[str, TaskMaker] = {}
# 92 % of the stories end well: without balancing, "yes" would nearly always be right.
YES_NO_KINDS: set[str] = set()


def task_kind(name: str, yes_no: bool = False) -> Callable[[TaskMaker], TaskMaker]:
    """Decorator: register a function that makes one kind of task. `yes_no`: its answers are "yes" and "no"."""

    def register(maker: TaskMaker) -> TaskMaker:
        TASK_KINDS[name] = maker
        if yes_no:
            YES_NO_KINDS.add(name)
        return maker

    return register


def check_kinds(kinds: Iterable[str], where: str, more: Iterable[str] = ()) -> None:
    """Raise UserError for a kind that is neither registered nor in `more`. `where` names its origin ("--kinds")."""
    known = [*TASK_KINDS, *more]
    for kind in kinds:
        if kind not in known:
            raise UserError(
                f"{where}: {kind!r} is not a kind of task{nearest(kind, known)}; the kinds are {', '.join(known)}."
            )


def categories() -> list[str]:
    """All values of `Task.category`, in the order of registration."""
    return [
        name for kind in TASK_KINDS for name in ((f"{kind}/yes", f"{kind}/no") if kind in YES_NO_KINDS else (kind,))
    ]


def generate_tasks(record: StoryRecord, seed: int, kinds: Iterable[str] | None = None) -> list[Task]:
    """Make one task of every kind that the record supports (among `kinds`, if given), in the order of registration.

    The prompt templates and variants depend only on the record's text and `seed`. Pass another seed in each epoch.
    """
    # Each choice of the sampler depends on its own name, so adding a kind does not change the prompts of the others.
    sampler = TemplateSampler(record, seed)
    makers = TASK_KINDS.values() if kinds is None else [TASK_KINDS[kind] for kind in kinds]
    return [task for maker in makers if (task := maker(record, sampler)) is not None]


def _story_task(
    kind: str,
    record: StoryRecord,
    sampler: TemplateSampler,
    target: str,
    answer: str | None = None,
    evidence: Span | None = None,
    **fields: str,
) -> Task:
    """A task whose prompt shows the story. `evidence` is a span of the story; `fields` fill the prompt template."""
    prompt, span = story_prompt(kind, record.story, sampler, **fields)
    # From positions in the story to positions in the prompt.
    if evidence is not None:
        evidence = (span[0] + evidence[0], span[0] + evidence[1])
    return Task(kind, prompt, target, span, answer, evidence, follow_up=follow_up_prompt(kind, sampler, **fields))


# Two kinds with the same answers but different questions, so that the model learns what a summary is and not one wording.
@task_kind("summary")
def _summary(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    return _story_task("summary", record, sampler, record.summary) if record.summary else None


@task_kind("what_happened")
def _what_happened(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    # The target of `summary` with other questions: a model should not depend on the word "summary".
    return _story_task("what_happened", record, sampler, record.summary) if record.summary else None


@task_kind("moral")
def _moral(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    """Only if the record is labeled as having a moral, and the story or the summary states it."""
    if "MoralValue" not in record.features:
        return None
    if moral := stated_moral(record.story):
        return _story_task("moral", record, sampler, moral[0], evidence=moral[1])
    # A moral that only the summary states has no evidence in the story, so truncation can't keep any.
    if record.summary and (moral := stated_moral(record.summary)):
        return _story_task("moral", record, sampler, moral[0])
    return None


@task_kind("main_character")
def _main_character(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    name = _main_character_of(record.story)
    if name is None:
        return None
    # Truncation keeps the sentence of the first mention, so the name stays in the prompt.
    evidence = find_word(record.story, name)
    return _story_task("main_character", record, sampler, f"The main character is {name}.", name, evidence)


@lru_cache(maxsize=64)  # consecutive tasks are often about the same story
def _main_character_of(story: str) -> str | None:
    return main_character(story)


@task_kind("ending", yes_no=True)
def _ending(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    """From the labels alone: a labeled record without BadEnding has a happy ending."""
    # Without labels, or with labels found by rule, a missing BadEnding says nothing about the ending.
    if not record.features or ENDING_UNKNOWN in record.features:
        return None
    if "BadEnding" in record.features:
        return _story_task("ending", record, sampler, "No, the story does not have a happy ending.", "no")
    return _story_task("ending", record, sampler, "Yes, the story has a happy ending.", "yes")


@task_kind("dialogue", yes_no=True)
def _dialogue(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    """Only if the story's text is unambiguous and the label, if the record has labels, agrees."""
    # None without labels: then the text alone decides.
    labeled = "Dialogue" in record.features if record.features else None
    if labeled is not False and (speech := first_speech(record.story)):
        return _story_task(
            "dialogue", record, sampler, "Yes, the characters talk to each other.", "yes", evidence=speech
        )
    # "No" follows from the whole story, so no part of it is evidence.
    if labeled is not True and is_silent(record.story):
        return _story_task("dialogue", record, sampler, "No, the characters do not talk to each other.", "no")
    return None


@task_kind("why")
def _why(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    reasons = stated_reasons(record.story)
    if not reasons:
        return None
    # Another seed, and so another epoch, asks for another reason of the same story.
    reason = sampler.one(reasons, "reason")
    return _story_task("why", record, sampler, reason.answer, evidence=reason.span, question=reason.question)


_LONG_WORD = re.compile(r"(?<![\w'’-])[a-z]{4,}(?![\w'’-])")
_QUOTABLE = range(15, 161)  # characters


@lru_cache(maxsize=64)  # consecutive tasks are often about the same story
def _quotable(story: str) -> tuple[Span, ...]:
    """Spans of the story's sentences that are neither too short nor too long to copy."""
    return tuple(span for span in sentence_spans(story) if span[1] - span[0] in _QUOTABLE)


@task_kind("quote")
def _quote(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    """Find the only sentence with a word. Every story supports this task. It teaches a small model to search and copy."""
    story = record.story
    # Only a word that occurs once identifies its sentence.
    counts = Counter(_LONG_WORD.findall(story.lower()))
    once = {word for word, times in counts.items() if times == 1}
    options = [(span, word) for span in _quotable(story) for word in _LONG_WORD.findall(story, *span) if word in once]
    if not options:
        return None
    span, word = sampler.one(options, "quote")
    return _story_task("quote", record, sampler, story[slice(*span)], evidence=span, word=word)


# Words from the second to the third last of a sentence: what is left has at least three words and begins in lower case.
_LATER_WORD = re.compile(r"(?<= )[a-z]{2,}(?= )")
_OTHER_SIGNS = re.compile(r'["“”:;]')


def _third_last_word_end(text: str) -> int:
    parts = text.rsplit(maxsplit=2)
    return len(parts[0]) if len(parts) == 3 else 0


@task_kind("copyedit")
def _copyedit(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    """Write the end of a sentence as a sentence of its own, with a capital and a period.

    " stay" and "Stay" are different tokens. A small model that has never written the second one can't start an answer with it.
    """
    sentences = [record.story[slice(*span)] for span in _quotable(record.story)]
    # Half a sentence may break a pair of quotation marks, and what follows a colon is not a sentence.
    plain = [sentence[:-1] for sentence in sentences if sentence.endswith(".") and not _OTHER_SIGNS.search(sentence)]
    starts = [
        (match.start(), sentence)
        for sentence in plain
        for match in _LATER_WORD.finditer(sentence, 0, _third_last_word_end(sentence) + 1)
    ]
    if not starts:
        return None
    start, sentence = sampler.one(starts, "copyedit")
    rest = sentence[start:]
    prompt, span = story_prompt("copyedit", rest, sampler)
    # The prompt is complete without the story, so it can also be a later turn.
    return Task("copyedit", prompt, f"{rest[0].upper()}{rest[1:]}.", span, evidence=span, follow_up=prompt)


@task_kind("words")
def _words(record: StoryRecord, sampler: TemplateSampler) -> Task | None:
    """Write the story with the given words. Half of the time each: also with a sentence, with features, from a summary."""
    optional = {
        "features": feature_list(record.features),
        "sentence": record.random_sentence or "",
        "summary": record.summary or "",
    }
    available = [name for name, value in optional.items() if value]
    # Each field is drawn separately, so that the model meets all combinations, and stories from words alone.
    chosen = [name for name in available if sampler.number("with " + name) % 2]
    if not record.words and not chosen and available:
        # A prompt needs at least one requirement.
        chosen = [sampler.one(available, "without words")]
    fields = {name: optional[name] for name in chosen}
    if record.words:
        fields["words"] = ", ".join(record.words)
    if not fields:
        return None
    return Task(
        "words",
        prompt=writing_prompt(sampler, **fields),
        target=record.story,
        story_span=None,  # the story is the answer, which is never shortened
        answer=", ".join(record.words) or None,
        required=record.words,
        sentence=fields.get("sentence"),
    )
