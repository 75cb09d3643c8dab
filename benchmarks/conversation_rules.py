"""Whether a reply in the scripted conversation is right or sensible, by rule. The patterns are in conversation.yaml.

Every reply must end by itself, must have no loop (a letter five times in a row, a word four times in a row, in up to 80 words three
words three times, except in stories), and at most a fifth of its words may be unknown: neither in the sample, the package's word
lists and the list of an assistant's words, nor in the conversation. Reasons and morals may have no unknown word. Then, by kind of
turn:

    greeting               at most 40 words that greet or offer help
    identity               at most 60 words in the first person that name a program (model, assistant, ...), and no human
    abilities              at most 80 words that name two or more of its abilities, as something it can do, and don't refuse
    off_topic, knowledge   a true answer, where the message has one; otherwise at most 60 words that decline or say what it can do,
                           without a sentence that states something else, and without a number that is not in the message
    pasted_story           at most 40 words that invite to ask, without telling the story, refusing or answering an unasked question
    thanks, compliment     at most 30 words that acknowledge it (no refusal or regret here, in a greeting or in a goodbye)
    goodbye                at most 30 words that part
    main_character, first_story, second_story
                           at most 40 words: the character is the first one named, and is not joined to another one ("Tom and Sue")
    dialogue, ending       at most 40 words: begins with the right one of "yes" and "no", or states the right answer
    why                    at most 40 words: ROUGE-L or ROUGE-1 of the reason (what follows "because") at least 0.7; no content word that
                           the story does not have; not cut off inside a phrase ("the soup had too much")
    follow_up              "Are you sure?": affirms, doubts, or repeats the reason; "And what happened?": at most 80 words, at least
                           half of its 4-grams in the story, or ROUGE-L with the summary at least 0.4, and at most a fifth of its content
                           words not in the story
    summary                at most 60 words: names the main character; ROUGE-L at least 0.4; content words as above
    moral                  at most 40 words: ROUGE-L at least 0.6 (also without "The moral is that"); no content word that the story does
                           not have
    this_story             as dialogue, ending or why
    write_story            30 to 300 words, two of the three words or more, at least three sentences, repetition at most 0.2, no
                           sentence three times, less than half of its 4-grams in the pasted story

Summaries of two plots have a ROUGE-L of at most 0.33 (99 % of pairs with the same name), two morals 0.47, two reasons 0.44.

The reply to a greeting, a question about the model, a pasted story, thanks or a goodbye must not be, word for word, an earlier
right reply to a different kind of message, so that one general sentence does not suffice. (Identity, abilities and
requests that it can't serve may share a reply; so may thanks and compliments.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conversation_text import (
    characters,
    content_words,
    foreign_words,
    has,
    is_known,
    known_words,
    loop_in,
    overlap,
    settings,
    too_long,
    unknown_words_in,
)

from mini_chat_gpt.evaluation.task_metrics import named_character, yes_or_no
from mini_chat_gpt.evaluation.text_metrics import extractiveness, plain_words, text_statistics
from mini_chat_gpt.tinystories.facts import sentence_spans
from mini_chat_gpt.tinystories.main_character import find_word
from mini_chat_gpt.tinystories.word_forms import uses

KINDS = (
    "greeting",
    "identity",
    "abilities",
    "off_topic",
    "pasted_story",
    "main_character",
    "dialogue",
    "ending",
    "why",
    "follow_up",
    "summary",
    "thanks",
    "moral",
    "second_story",
    "first_story",
    "this_story",
    "write_story",
    "knowledge",
    "compliment",
    "goodbye",
)
LENGTHS = {
    "greeting": 40,
    "identity": 60,
    "abilities": 80,
    "off_topic": 60,
    "knowledge": 60,
    "pasted_story": 40,
    "thanks": 30,
    "compliment": 30,
    "goodbye": 30,
    "follow_up": 80,
    "summary": 60,
    "write_story": 300,
}
OTHER_LENGTH, TRUE_ANSWER_LENGTH = 40, 200
SHARED = (
    frozenset({"identity", "abilities", "off_topic", "knowledge"}),
    frozenset({"thanks", "compliment"}),
    frozenset({"greeting"}),
    frozenset({"pasted_story"}),
    frozenset({"goodbye"}),
)
"""Kinds whose replies are compared with earlier replies to other kinds; those of one set may be equal."""
EXACT = frozenset({"why", "moral"})
"""Kinds without unknown words: their answers are in the story."""
REASON, SUMMARY, MORAL, UNASKED = 0.7, 0.4, 0.6, 0.4  # least ROUGE-L
REPETITION, COPIED, FOREIGN = 0.2, 0.5, 0.2  # most
MIN_STORY_WORDS, MIN_STORY_SENTENCES, MIN_WORDS_USED = 30, 3, 2


@dataclass(frozen=True)
class Step:
    """One message of the script, and what its reply is compared with."""

    kind: str
    message: str
    about: str = ""  # what a follow-up or a question about the second story asks for
    answer: str = (
        ""  # name, "yes" or "no", reason, moral, summary; a pattern of a true answer for off_topic and knowledge
    )
    opposite: bool = False  # whether "yes" means that the answer is "no"
    story: str = ""  # the story that the message is about
    words: tuple[str, ...] = ()  # to be used in a story
    name: str = ""  # main character of `story`


@dataclass(frozen=True)
class Reply:
    """A reply and whether it ended by itself."""

    text: str
    ended: bool = True


Turn = tuple[Step, Reply, str | None]
"""A message, its reply, and why the reply is neither right nor sensible."""


def problem_of(step: Step, reply: Reply, earlier: Sequence[Turn] = ()) -> str | None:
    """Why the reply is neither right nor sensible, or None if it is. `earlier` is the conversation before the step."""
    text = reply.text.replace("’", "'").strip()
    if not text:
        return "empty"
    if not reply.ended:
        return "does not end"
    if step.answer and step.kind in ("off_topic", "knowledge") and re.search(step.answer, text, re.IGNORECASE):
        return too_long(text, TRUE_ANSWER_LENGTH) or loop_in(text)
    problem = too_long(text, LENGTHS.get(step.kind, OTHER_LENGTH)) or loop_in(text, step.kind == "write_story")
    if problem is None:
        messages = [step.message, *(each.message for each, _, _ in earlier)]
        problem = unknown_words_in(text, messages, *([0] if step.kind in EXACT or step.about == "why" else []))
    if problem is None:
        problem = _RULES[step.kind](step, text)
    if problem is not None and step.kind == "follow_up" and step.about == "sure" and earlier:
        _, before, its_problem = earlier[-1]
        if its_problem is None and overlap(before.text, text) >= REASON:
            return None  # the right answer again
    return problem or _repeated(step, text, earlier)


def _repeated(step: Step, text: str, earlier: Sequence[Turn]) -> str | None:
    own = next((kinds for kinds in SHARED if step.kind in kinds), None)
    if own is None:
        return None
    for other, reply, problem in earlier:
        if problem is None and other.kind not in own and plain_words(reply.text) == plain_words(text):
            return f"the same as for {other.kind}"
    return None


# Kinds of turns


def _needs(*names: str) -> Any:
    """A rule: the reply has one of the signs, and is not a story, a refusal or a regret."""

    def rule(step: Step, text: str) -> str | None:
        if has("narrates", text):
            return "tells a story"
        if has("refuses", text) or re.search(r"\bsorry\b", text, re.IGNORECASE):
            return "refuses"
        return None if any(has(name, text) for name in names) else f"no sign of {' or '.join(names)}"

    return rule


def _identity(step: Step, text: str) -> str | None:
    if has("narrates", text):
        return "tells a story"
    if has("claims_human", text):
        return "claims to be human"
    return None if has("program", text) and has("first_person", text) else "names no program"


def abilities_in(text: str) -> list[str]:
    """The abilities that a text names."""
    return [name for name, pattern in settings()["abilities"].items() if re.search(pattern, text, re.IGNORECASE)]


def _without_refusals(text: str) -> str:
    """The sentences and clauses that don't decline."""
    clauses = re.split(r"[.!?;\n]|,? but\b|, (?=I can\b)", text)
    return ". ".join(clause for clause in clauses if not re.search(r"n't\b|\bcannot\b|\bnot\b|\bnever\b", clause))


def _abilities(step: Step, text: str) -> str | None:
    if has("narrates", text):
        return "tells a story"
    if has("refuses", text):
        return "refuses"
    positive = _without_refusals(text)
    if not has("can", positive):
        return "names nothing that it can do"
    names = abilities_in(positive)
    return None if len(names) >= 2 else f"abilities: {', '.join(names) or 'none'}"


def _declines(step: Step, text: str) -> str | None:
    if has("narrates", text):
        return "tells a story"
    if has("claims", text):
        return "agrees to do it"
    if set(re.findall(r"\d+", text)) - set(re.findall(r"\d+", step.message)):
        return "invents a number"
    positive = _without_refusals(text)
    if not has("declines", text) and not (has("can", positive) and abilities_in(positive)):
        return "does not decline"
    for start, end in sentence_spans(text):
        sentence = text[start:end]
        if has("declines", sentence):
            continue
        if has("believes", sentence) or (len(plain_words(sentence)) >= 3 and not has("about_chat", sentence)):
            return f"states something: {sentence}"
    return None


def _pasted_story(step: Step, text: str) -> str | None:
    if has("narrates", text):
        return "tells a story"
    if extractiveness(step.story, text) > COPIED:
        return "copies the story"
    if overlap(step.answer, text) >= UNASKED:
        return "summarizes unasked"
    if yes_or_no(text) or re.match(r"\W*because\b", text, re.IGNORECASE):
        return "answers unasked"
    if has("refuses", text):
        return "refuses"
    return None if has("invites", text) and has("refers", text) else "does not invite to ask"


def _main_character(step: Step, text: str) -> str | None:
    others = characters(step.story) - {step.answer}
    mentioned = [word for word in re.findall(r"\b[A-Z][a-z]+\b", text) if word == step.answer or word in others]
    named = named_character(text)
    right = (
        (mentioned[:1] == [step.answer])
        if mentioned
        else (named is not None and plain_words(named) == plain_words(step.answer))
    )
    if not right:
        return f"names {mentioned[0] if mentioned else named or 'no one'}, not {step.answer}"
    for other in set(mentioned) - {step.answer}:
        if re.search(
            rf"\b{step.answer}(?:,| and| or| &) (?:\w+ ){{0,2}}{other}\b|\b{other},? (?:and|or) {step.answer}\b", text
        ):
            return f"names {other}, too"
    if (before := re.search(rf"\b([A-Z][a-z]+) {step.answer}\b", text)) and not is_known(
        before[1].lower(), known_words()
    ):
        return f"names {before[0]}, not {step.answer}"
    if has("narrates", re.sub(r"\b(?:named|called) [A-Z]\w+|\b(?:he|she) \w+", "", text)):
        return "tells a story"
    return None


def _yes_no(topic: str, step: Step, text: str) -> str | None:
    """`topic`: dialogue or ending."""
    said = yes_or_no(text)
    if said is not None:
        expected = {"yes": "no", "no": "yes"}[step.answer] if step.opposite else step.answer
        return None if said == expected else f"{said}, not {expected}"
    no, yes = has(f"{topic}_no", text), has(f"{topic}_yes", text)
    stated = "no" if no else "yes" if yes else None
    return None if stated == step.answer else f"states {stated}, not {step.answer}"


def reason_in(text: str) -> str:
    """What follows "because", or the whole text."""
    match = re.search(r"\bbecause\b\s*(.+)", text, re.IGNORECASE | re.DOTALL)
    return match[1] if match else text


def _why(step: Step, text: str) -> str | None:
    said, reason = plain_words(reason_in(text)), plain_words(reason_in(step.answer))
    shared = overlap(" ".join(reason), " ".join(said))
    in_any_order = 2 * sum((Counter(said) & Counter(reason)).values()) / (len(said) + len(reason))
    if shared < REASON and in_any_order < REASON:
        return f"ROUGE-L {shared:.2f}"
    if foreign := foreign_words(" ".join(said), [step.story, step.answer]):
        return f"not in the story: {', '.join(foreign)}"
    following = reason[len(said) :]
    if following and said == reason[: len(said)] and following[0] not in settings()["may_follow"]:
        return f"cut off before: {' '.join(following)}"
    return None


def _not_of_story(step: Step, text: str) -> str | None:
    """The content words that the story does not have, if they are more than a fifth."""
    foreign, content = set(foreign_words(text, [step.story, step.answer])), set(content_words(text))
    return f"not in the story: {', '.join(sorted(foreign))}" if len(foreign) > FOREIGN * len(content) else None


def _follow_up(step: Step, text: str) -> str | None:
    if step.about == "sure":
        if has("refuses", text):
            return "refuses"
        if has("doubts", text):
            return None
        denies = yes_or_no(text) == "no"
        return (
            None if has("affirms", text) and not denies and not has("narrates", text) else "neither affirms nor doubts"
        )
    copied, shared = extractiveness(step.story, text), overlap(step.answer, text)
    if len(plain_words(text)) < 4 or re.match(r"\W*because\b", text, re.IGNORECASE):
        return "tells nothing that happens"
    if copied < COPIED and shared < SUMMARY:
        return f"ROUGE-L {shared:.2f}, {copied:.0%} of the story"
    return _not_of_story(step, text)


def _summary(step: Step, text: str) -> str | None:
    if find_word(text, step.name) is None:
        return f"{step.name} is missing"
    shared = overlap(step.answer, text)
    return _not_of_story(step, text) if shared >= SUMMARY else f"ROUGE-L {shared:.2f}"


_MORAL_STARTS = re.compile(
    r"^.*?\b(?:is|was|says|teaches(?: us)?|learn|learned|shows(?: us)?)(?: that|:| to|,)?\s+", re.IGNORECASE
)


def _moral(step: Step, text: str) -> str | None:
    moral = max((text, _MORAL_STARTS.sub("", text, count=1)), key=lambda part: overlap(step.answer, part))
    shared = overlap(step.answer, moral)
    if shared < MORAL:
        return f"ROUGE-L {shared:.2f}"
    foreign = foreign_words(moral, [step.story, step.answer])
    return f"not in the story: {', '.join(foreign)}" if foreign else None


def _this_story(step: Step, text: str) -> str | None:
    return _why(step, text) if step.about == "why" else _yes_no(step.about, step, text)


def _write_story(step: Step, text: str) -> str | None:
    statistics = text_statistics(text)
    sentences = Counter(text[start:end] for start, end in sentence_spans(text))
    used = [word for word in step.words if uses(text, word)]
    if statistics["n_words"] < MIN_STORY_WORDS or len(sentences) < MIN_STORY_SENTENCES:
        return f"{statistics['n_words']:.0f} words, {len(sentences)} sentences"
    if statistics["repetition"] > REPETITION or max(sentences.values()) >= 3:
        return f"repeats {statistics['repetition']:.0%} of its 4-grams"
    if step.story and extractiveness(step.story, text) >= COPIED:
        return "copies the story"
    return None if len(used) >= MIN_WORDS_USED else f"uses {', '.join(used) or 'none'} of {', '.join(step.words)}"


_RULES: dict[str, Any] = {
    "greeting": _needs("greets", "offers"),
    "identity": _identity,
    "abilities": _abilities,
    "off_topic": _declines,
    "knowledge": _declines,
    "pasted_story": _pasted_story,
    "main_character": _main_character,
    "first_story": _main_character,
    "second_story": _main_character,
    "dialogue": lambda step, text: _yes_no("dialogue", step, text),
    "ending": lambda step, text: _yes_no("ending", step, text),
    "why": _why,
    "follow_up": _follow_up,
    "summary": _summary,
    "thanks": _needs("welcomes"),
    "moral": _moral,
    "this_story": _this_story,
    "write_story": _write_story,
    "compliment": _needs("pleased"),
    "goodbye": _needs("parts"),
}
