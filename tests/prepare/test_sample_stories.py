"""The sample data set: the public format, answers that are true of their story, and a valid part that is held out."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.prepare.sample_plots import FACTS, PRONOUNS, Storyteller, Wish, is_held_out
from mini_chat_gpt.prepare.sample_stories import known_words, main, measure, write_sample

FIELD = re.compile(r"^(Features|Words|Summary|Random sentence|Story): ?", re.MULTILINE)
SPEAKING = re.compile(r"\b(said|asked|called|shouted|whispered|replied|answered|yelled|promised|begged|screamed)\b")
N_TRAIN, N_VALID = 3000, 1500
SHA256_OF_A_SMALL_SAMPLE = "94ba0250ec086df12cda14e7d7ed5a95e96e99cb116d974f0f8b67bb2ab7b5ae"


@dataclass
class Record:
    """A record as this test reads it, and what the answers file says of it."""

    fields: dict[str, str]
    order: list[str]
    answer: dict[str, Any]

    @property
    def story(self) -> str:
        return self.fields["Story"]

    @property
    def features(self) -> list[str]:
        return self.fields["Features"].split(", ") if "Features" in self.fields else []


def read(folder: Path, split: str) -> list[Record]:
    """A parser of its own, so that the format isn't checked by the code that wrote it."""
    text = (folder / f"TinyStoriesInstruct-{split}.txt").read_text(encoding="utf-8")
    *parts, rest = text.split("\n<|endoftext|>\n")
    assert rest == ""
    lines = (folder / f"TinyStoriesInstruct-{split}.answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(parts) == len(lines)
    records = []
    for part, line in zip(parts, lines, strict=True):
        _, *pieces = FIELD.split(part)
        fields = {name: value.strip() for name, value in zip(pieces[::2], pieces[1::2], strict=True)}
        records.append(Record(fields, pieces[::2], json.loads(line)))
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample")
    write_sample(path, N_TRAIN, N_VALID, seed=3)
    return path


@pytest.fixture(scope="module")
def train(folder: Path) -> list[Record]:
    return read(folder, "train")


@pytest.fixture(scope="module")
def valid(folder: Path) -> list[Record]:
    return read(folder, "valid")


@pytest.fixture(scope="module")
def records(train: list[Record], valid: list[Record]) -> list[Record]:
    return train + valid


@pytest.fixture(scope="module")
def teller() -> Storyteller:
    return Storyteller()


def share(records: list[Record], holds: Any) -> float:
    return sum(map(bool, map(holds, records))) / len(records)


# ---------- the format


def test_every_record_has_one_story_and_each_field_at_most_once(records):
    assert all(len(set(record.order)) == len(record.order) and record.story for record in records)


def test_fields_come_in_many_orders_and_the_summary_after_a_third_of_the_stories(records):
    assert len({tuple(record.order) for record in records}) > 40
    with_summary = [record for record in records if "Summary" in record.fields]
    assert 0.28 < share(with_summary, lambda record: record.order[-1] == "Summary") < 0.39
    assert all(record.order[-1] in ("Story", "Summary") for record in records)


def test_some_stories_follow_a_blank_line_and_some_do_not(folder):
    text = (folder / "TinyStoriesInstruct-train.txt").read_text(encoding="utf-8")
    with_blank = text.count("Story: \n\n")
    assert 0.4 * N_TRAIN < with_blank < 0.6 * N_TRAIN
    assert text.count("Story: \n") == N_TRAIN


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [("Features", 0.68, 0.82), ("Words", 0.5, 0.62), ("Summary", 0.75, 0.88), ("Random sentence", 0.3, 0.4)],
)
def test_fields_have_the_shares_of_the_public_data(records, field, least, most):
    assert least < share(records, lambda record: field in record.fields) < most


@pytest.mark.parametrize(
    ("feature", "least", "most"),
    [
        ("Dialogue", 0.55, 0.64),
        ("BadEnding", 0.09, 0.15),
        ("MoralValue", 0.15, 0.24),
        ("Twist", 0.03, 0.11),
        ("Foreshadowing", 0.01, 0.06),
        ("Conflict", 0.01, 0.06),
    ],
)
def test_features_have_the_shares_of_the_public_data(records, feature, least, most):
    assert least < share(records, lambda record: feature in record.features) < most


def test_no_story_can_spell_a_control_token(records):
    assert not any(set("<|>") & set("".join(record.fields.values())) for record in records)


# ---------- answers agree with text


def test_given_features_are_all_that_hold_and_no_others(records):
    given = [record for record in records if "Features" in record.fields]
    assert all(record.features == record.answer["features"] for record in given)


def test_features_agree_with_the_other_answers(records):
    for record in records:
        has = set(record.answer["features"])
        assert ("Dialogue" in has) == record.answer["dialogue"]
        assert ("BadEnding" in has) == (record.answer["ending"] == "bad")
        assert ("MoralValue" in has) == (record.answer["moral"] is not None)


def test_dialogue_is_told_exactly_where_there_are_quotes(records):
    for record in records:
        assert record.answer["dialogue"] == ('"' in record.story)
        assert record.story.count('"') % 2 == 0


def test_nobody_speaks_in_a_story_without_dialogue(records):
    quiet = [record for record in records if not record.answer["dialogue"]]
    assert not [match[0] for record in quiet if (match := SPEAKING.search(record.story))]


def test_the_main_character_is_named_first_and_clearly_most_often(records, teller):
    names = {
        name
        for lists in (teller.words["names"], teller.words["names_only_in_valid"])
        for group in lists.values()
        for name in group
    }
    others = {elder for elder, _ in teller.words["elders"]}
    for record in records:
        for text in (record.story, re.sub(r'"[^"]*"', "", record.story)):
            named = [word for word in re.findall(r"\b[A-Z][a-z]+\b", text) if word in names | others]
            first, *rest = Counter(named).most_common(2)
            assert first[0] == record.answer["main_character"] == named[0]
            assert not rest or first[1] >= rest[0][1] + 2


def test_no_name_is_a_word_that_stories_use(records, teller):
    words = {word for record in records for word in re.findall(r"\b[a-z]+\b", record.story)}
    lists = (teller.words["names"], teller.words["names_only_in_valid"])
    assert not words & {name.lower() for names in lists for group in names.values() for name in group}


def test_the_moral_stands_in_the_last_line_and_nowhere_without_the_feature(records):
    for record in records:
        last_line = record.story.splitlines()[-1]
        moral = record.answer["moral"]
        if moral:
            assert last_line.lower().endswith(moral.lower())
        else:
            assert not re.search(r"\bmoral\b|\blesson\b|learned that", record.story)


def test_reasons_are_given_in_the_story_in_the_very_words(records):
    for record in records:
        assert record.answer["why"]
        for pair in record.answer["why"]:
            assert re.fullmatch(r"Why (was|were|did|could|had) .*\?", pair["question"])
            assert re.fullmatch(r"Because .*\.", pair["answer"])
            assert f"because {pair['answer'].removeprefix('Because ')}" in record.story


def test_the_random_sentence_is_a_sentence_of_the_story(records):
    for record in records:
        if sentence := record.fields.get("Random sentence"):
            assert sentence in record.story
            assert sentence[-1] in '.!?"'
            assert sentence.count('"') % 2 == 0


def test_required_words_are_a_verb_a_noun_and_an_adjective_that_the_story_uses(records):
    lexicon = known_words()
    for record in records:
        if "Words" not in record.fields:
            continue
        words = record.fields["Words"].split(", ")
        assert words == record.answer["words"]
        assert len(set(words)) == 3
        used = set(re.findall(r"[a-z]+", record.story.lower()))
        for word, part in zip(words, ("verb", "noun", "adjective"), strict=True):
            assert used & {form for form, base in lexicon[part].items() if base == word}, (word, record.story)


def test_required_words_are_varied(train):
    counts = Counter(word for record in train for word in record.answer["words"] or [])
    assert len(counts) > 400
    assert counts.most_common(1)[0][1] < 0.06 * sum(counts.values())


def test_inflected_verbs_lead_to_their_base_form():
    verbs = known_words()["verb"]
    for form, base in {"cried": "cry", "danced": "dance", "hopped": "hop", "ran": "run", "hiding": "hide"}.items():
        assert verbs[form] == base


def test_the_summary_names_the_main_character_the_thing_and_its_adjective_unless_the_plot_has_no_use_for_it(records):
    for record in records:
        answer = record.answer
        assert answer["main_character"] in answer["what_happened"]
        assert answer["thing"] in answer["what_happened"]
        assert record.fields.get("Summary", answer["what_happened"]) == answer["what_happened"]
    assert share(records, lambda record: record.answer["adjective"] in record.answer["what_happened"]) > 0.99


def test_every_name_and_adjective_of_the_summary_is_in_the_story(records):
    for record in records:
        summary, story = record.answer["what_happened"], record.story.lower()
        names = re.findall(r"(?<![.] )(?<!^)\b[A-Z][a-z]+", summary)
        assert all(name.lower() in story for name in names)
        if f" {record.answer['adjective']} " in summary:
            assert record.answer["adjective"] in story


def test_endings_dialogue_and_morals_can_not_be_told_from_the_plot(records):
    by_plot: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_plot.setdefault(record.answer["plot"], []).append(record.answer)
    for known in by_plot.values():
        assert {answer["ending"] for answer in known} == {"good", "bad"}
        assert {answer["dialogue"] for answer in known} == {True, False}
        assert {answer["moral"] is None for answer in known} == {True, False}


# ---------- language


def test_stories_have_60_to_200_words(records):
    assert all(60 <= len(record.story.split()) <= 200 for record in records)


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a before a vowel", r"\b[Aa] (?:[aeio]|u(?!ni|se))"),
        ("an before a consonant", r"\b[Aa]n (?![aeiou]|hour|honest)"),
        ("two blanks, or a blank at the end of a line", r"  | \n"),
        ("a blank before a mark", r" [,.!?:]"),
        ("two marks", r"[,.!?:][,.!?:]"),
        ("what is left of a template", r"[{}\[\]()_“”#]"),
        (
            "a sentence that begins small",
            rf"(?:^|[.!?] +|\n|[.!?]\" (?!{SPEAKING.pattern}|cried|they |she |he |the ))[a-z]",
        ),
        ("a word said twice", r"\b(?!scratch|squeak|bump|tap|rattle)([a-z]+) \1\b"),
        ("a pronoun out of place", r"\b(?:was|is) (?:her|him|their)\.|\bof he\b|\bfor (?:he|she)\b|\bto (?:he|she)\b"),
    ],
)
def test_the_language_is_clean(records, what, pattern):
    texts = [text for record in records for text in (record.story, record.answer["what_happened"])]
    found = [match for text in texts if (match := re.search(pattern, text, re.MULTILINE))]
    assert not found, (what, [match.string[max(0, match.start() - 40) : match.end() + 20] for match in found[:5]])


def test_the_main_character_has_one_gender(records):
    """In stories with nobody else whom a pronoun could mean, only one kind of pronoun stands."""
    for record in records:
        if record.answer["kind"] in ("girl", "boy"):
            introduction = record.story.split("\n")[0]
            wrong = "He" if record.answer["kind"] == "girl" else "She"
            opening = ". ".join(introduction.split(". ")[:2])
            assert not re.search(rf"\. {wrong} (liked|loved|was very)", opening)


# ---------- the split


def test_training_shows_at_least_25_plots_and_valid_exactly_three_more(train, valid):
    shown = {record.answer["plot"] for record in train}
    assert len(shown) >= 25
    assert len({record.answer["plot"] for record in valid} - shown) == 3
    assert all(record.answer["seen"] == (record.answer["plot"] in shown) for record in train + valid)
    assert 0.36 < share(valid, lambda record: not record.answer["seen"]) < 0.44


def test_no_main_character_and_thing_of_valid_were_together_in_training(train, valid):
    def pairs(records: list[Record]) -> set[tuple[str, str]]:
        return {(record.answer["main_character"], record.answer["thing"]) for record in records}

    assert not pairs(train) & pairs(valid)
    assert not any(is_held_out(*pair) for pair in pairs(train))


def test_names_kept_for_valid_appear_nowhere_in_training(train, valid, teller):
    kept = {name for names in teller.words["names_only_in_valid"].values() for name in names}
    assert not kept & {word for record in train for word in re.findall(r"[A-Z][a-z]+", record.story)}
    assert all(record.answer["name_seen"] == (record.answer["main_character"] not in kept) for record in train + valid)
    assert 0.06 < share(valid, lambda record: not record.answer["name_seen"]) < 0.14


def test_no_story_is_told_twice(records):
    assert len({record.story for record in records}) == len(records)


# ---------- the files


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    first, second, third = (
        write_sample(tmp_path / name, 60, 40, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert all(one.read_bytes() != other.read_bytes() for one, other in zip(first, third, strict=True))


def test_the_bytes_are_those_of_every_other_machine_and_of_the_first_release(tmp_path):
    """Results on the sample can be compared only while it stays what it is. Change the number only with the sample."""
    written = b"".join(path.read_bytes() for path in write_sample(tmp_path, 400, 200))
    assert hashlib.sha256(written).hexdigest() == SHA256_OF_A_SMALL_SAMPLE


def test_a_longer_sample_begins_with_the_shorter_one(tmp_path):
    short, long = (write_sample(tmp_path / str(n), n, 10)[0].read_text(encoding="utf-8") for n in (50, 80))
    assert long.startswith(short)


def test_real_data_is_never_overwritten(tmp_path):
    real = tmp_path / "TinyStoriesInstruct-valid.txt"
    real.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"TinyStoriesInstruct-valid\.txt"):
        write_sample(tmp_path, 10, 10)
    assert real.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [real.name]


def test_an_earlier_sample_is_replaced(tmp_path):
    write_sample(tmp_path, 20, 10)
    write_sample(tmp_path, 10, 10)
    assert len(read(tmp_path, "train")) == 10


def test_the_measures_are_those_of_a_varied_sample(folder):
    measures = measure(folder)
    assert measures["train"]["distinct stories, share"] == measures["valid"]["distinct stories, share"] == 1
    assert measures["train"]["largest plot, share"] < 0.06
    assert measures["train"]["distinct 4-grams per 1,000 words"] > 400
    assert measures["train"]["names of main characters"] > 200
    assert measures["train"]["distinct words"] < 2500


def test_the_command_writes_a_sample_and_prints_its_measures(tmp_path, capsys):
    assert main([str(tmp_path / "new"), "--train", "40", "--valid", "20"]) == 0
    assert re.search(r"records +40 +20\n", capsys.readouterr().out)


# ---------- the written plots


def texts_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """(path, text) of every text in a piece of the YAML file."""
    if isinstance(value, str):
        return [(path, value)]
    if isinstance(value, dict):
        return [item for key, part in value.items() for item in texts_of(part, (*path, key))]
    return [item for part in value for item in texts_of(part, path)] if isinstance(value, list) else []


def test_every_slot_of_every_text_exists(teller):
    always = {"hero", "pal", "elder", "stranger", "thing", "other", "adj", "kind", "friend", "someone", "trait", "day"}
    always |= {"day_plain", "home", "home_adjective", "landmark", "hobby", "hobby2", "hobby3"}
    always |= {prefix + form for prefix in ("", "pal_", "elder_", "stranger_") for form in PRONOUNS["boy"]}
    always |= {mood + number for mood in teller.words["feelings"] for number in ("", "2")}
    for plot in teller.plots:
        ways = [set(way) - {"tag"} for way in plot.get("ways", [{}])]
        assert all(way == ways[0] for way in ways), plot["plot"]
        known = always | ways[0] | ({"in_place", "to_place"} if "places" in plot else set())
        used = {slot.lower() for _, text in texts_of(plot) for slot in re.findall(r"<(\w+)>", text)}
        assert used <= known, plot["plot"]
    assert always | {"place"} >= FACTS


def test_every_condition_of_every_beat_can_hold(teller):
    for plot in teller.plots:
        can = {"any", "good", "bad", "talk", "quiet", "child", "animal", "maybe"}
        can |= {way["tag"] for way in plot.get("ways", []) if "tag" in way}
        parts = [*plot["beats"], plot["summary"], plot["morals"], plot["orders"]]
        assert {word for part in parts for condition in part for word in condition.split()} <= can, plot["plot"]


def test_speech_stands_in_talking_beats_and_only_there(teller):
    for plot in teller.plots:
        for beat in plot["beats"]:
            for (condition, *_), text in texts_of(beat):
                assert ("“" in text) == ("talk" in condition.split()), (plot["plot"], text)
                assert text.count("“") == text.count("”")


def test_every_question_has_its_reason(teller):
    asking = [text for plot in teller.plots for _, text in texts_of(plot["beats"]) if "??" in text]
    assert len(asking) > 80
    assert all(re.fullmatch(r".* because .* \?\? Why .*\?", text) for text in asking)


def test_every_plot_can_end_both_ways_with_and_without_speech_and_with_a_moral(teller):
    rng = Random(0)
    for plot in teller.plots:
        for bad in (True, False):
            for talk in (True, False):
                story = teller.tell(plot, Wish(False, bad, talk, moral=True, new_name=False), rng)
                assert (story.ending, "Dialogue" in story.features) == ("bad" if bad else "good", talk)
