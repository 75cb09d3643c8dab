"""The sample data set has the public format, answers that are true of the stories, and a held-out valid split."""

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
from mini_chat_gpt.prepare.sample_plots import FACTS, PRONOUNS, StoryGenerator, StorySpec, is_held_out
from mini_chat_gpt.prepare.sample_stories import known_words, main, measure, write_sample

FIELD = re.compile(r"^(Features|Words|Summary|Random sentence|Story): ?", re.MULTILINE)
SPEAKING = re.compile(r"\b(said|asked|called|shouted|whispered|replied|answered|yelled|promised|begged|screamed)\b")
N_TRAIN, N_VALID = 3000, 1500
SHA256_OF_A_SMALL_SAMPLE = "94ba0250ec086df12cda14e7d7ed5a95e96e99cb116d974f0f8b67bb2ab7b5ae"


@dataclass
class Record:
    """A record as parsed by this test, and its entry in the answers file."""

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
    """A separate parser, so that the format is not checked by the code that wrote it."""
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
def generator() -> StoryGenerator:
    return StoryGenerator()


def share(records: list[Record], holds: Any) -> float:
    return sum(map(bool, map(holds, records))) / len(records)


# the format


def test_every_record_has_one_story_and_each_field_at_most_once(records):
    assert all(len(set(record.order)) == len(record.order) and record.story for record in records)


def test_the_order_of_fields_varies_and_a_third_of_the_summaries_follow_the_story(records):
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


# answers agree with text


def test_stated_features_are_exactly_those_of_the_story(records):
    with_features = [record for record in records if "Features" in record.fields]
    assert all(record.features == record.answer["features"] for record in with_features)


def test_features_agree_with_the_other_answers(records):
    for record in records:
        has = set(record.answer["features"])
        assert ("Dialogue" in has) == record.answer["dialogue"]
        assert ("BadEnding" in has) == (record.answer["ending"] == "bad")
        assert ("MoralValue" in has) == (record.answer["moral"] is not None)


def test_a_story_has_dialogue_exactly_if_it_has_quotes(records):
    for record in records:
        assert record.answer["dialogue"] == ('"' in record.story)
        assert record.story.count('"') % 2 == 0


def test_no_one_speaks_in_a_story_without_dialogue(records):
    quiet = [record for record in records if not record.answer["dialogue"]]
    assert not [match[0] for record in quiet if (match := SPEAKING.search(record.story))]


def test_the_main_character_is_named_first_and_most_often(records, generator):
    names = {
        name
        for lists in (generator.words["names"], generator.words["names_only_in_valid"])
        for group in lists.values()
        for name in group
    }
    others = {elder for elder, _ in generator.words["elders"]}
    for record in records:
        for text in (record.story, re.sub(r'"[^"]*"', "", record.story)):
            named = [word for word in re.findall(r"\b[A-Z][a-z]+\b", text) if word in names | others]
            first, *rest = Counter(named).most_common(2)
            assert first[0] == record.answer["main_character"] == named[0]
            assert not rest or first[1] >= rest[0][1] + 2


def test_no_name_is_a_word_of_the_stories(records, generator):
    words = {word for record in records for word in re.findall(r"\b[a-z]+\b", record.story)}
    lists = (generator.words["names"], generator.words["names_only_in_valid"])
    assert not words & {name.lower() for names in lists for group in names.values() for name in group}


def test_the_moral_is_in_the_last_line_of_stories_with_the_feature_only(records):
    for record in records:
        last_line = record.story.splitlines()[-1]
        moral = record.answer["moral"]
        if moral:
            assert last_line.lower().endswith(moral.lower())
        else:
            assert not re.search(r"\bmoral\b|\blesson\b|learned that", record.story)


def test_reasons_are_quoted_from_the_story(records):
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


def test_required_words_are_a_verb_a_noun_and_an_adjective_of_the_story(records):
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


def test_inflected_verbs_map_to_their_base_form():
    verbs = known_words()["verb"]
    for form, base in {"cried": "cry", "danced": "dance", "hopped": "hop", "ran": "run", "hiding": "hide"}.items():
        assert verbs[form] == base


def test_the_summary_has_the_main_character_the_thing_and_nearly_always_its_adjective(records):
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


def test_the_plot_does_not_determine_ending_dialogue_or_moral(records):
    by_plot: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_plot.setdefault(record.answer["plot"], []).append(record.answer)
    for known in by_plot.values():
        assert {answer["ending"] for answer in known} == {"good", "bad"}
        assert {answer["dialogue"] for answer in known} == {True, False}
        assert {answer["moral"] is None for answer in known} == {True, False}


# language


def test_stories_have_60_to_200_words(records):
    assert all(60 <= len(record.story.split()) <= 200 for record in records)


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a before a vowel", r"\b[Aa] (?:[aeio]|u(?!ni|se))"),
        ("an before a consonant", r"\b[Aa]n (?![aeiou]|hour|honest)"),
        ("two spaces, or a space at the end of a line", r"  | \n"),
        ("a space before punctuation", r" [,.!?:]"),
        ("doubled punctuation", r"[,.!?:][,.!?:]"),
        ("a part of a template", r"[{}\[\]()_“”#]"),
        (
            "a sentence that begins with a lowercase letter",
            rf"(?:^|[.!?] +|\n|[.!?]\" (?!{SPEAKING.pattern}|cried|they |she |he |the ))[a-z]",
        ),
        ("a repeated word", r"\b(?!scratch|squeak|bump|tap|rattle)([a-z]+) \1\b"),
        ("a wrong pronoun", r"\b(?:was|is) (?:her|him|their)\.|\bof he\b|\bfor (?:he|she)\b|\bto (?:he|she)\b"),
    ],
)
def test_the_language_is_clean(records, what, pattern):
    texts = [text for record in records for text in (record.story, record.answer["what_happened"])]
    found = [match for text in texts if (match := re.search(pattern, text, re.MULTILINE))]
    assert not found, (what, [match.string[max(0, match.start() - 40) : match.end() + 20] for match in found[:5]])


def test_the_main_character_has_one_gender(records):
    """The first two sentences mention no other character, so all their pronouns have this gender."""
    for record in records:
        if record.answer["kind"] in ("girl", "boy"):
            introduction = record.story.split("\n")[0]
            wrong = "He" if record.answer["kind"] == "girl" else "She"
            opening = ". ".join(introduction.split(". ")[:2])
            assert not re.search(rf"\. {wrong} (liked|loved|was very)", opening)


# the split


def test_training_has_at_least_25_plots_and_valid_exactly_three_more(train, valid):
    plots = {record.answer["plot"] for record in train}
    assert len(plots) >= 25
    assert len({record.answer["plot"] for record in valid} - plots) == 3
    assert all(record.answer["seen"] == (record.answer["plot"] in plots) for record in train + valid)
    assert 0.36 < share(valid, lambda record: not record.answer["seen"]) < 0.44


def test_no_pair_of_main_character_and_thing_is_in_both_splits(train, valid):
    def pairs(records: list[Record]) -> set[tuple[str, str]]:
        return {(record.answer["main_character"], record.answer["thing"]) for record in records}

    assert not pairs(train) & pairs(valid)
    assert not any(is_held_out(*pair) for pair in pairs(train))


def test_names_of_the_valid_split_never_occur_in_training(train, valid, generator):
    valid_names = {name for names in generator.words["names_only_in_valid"].values() for name in names}
    assert not valid_names & {word for record in train for word in re.findall(r"[A-Z][a-z]+", record.story)}
    assert all(
        record.answer["name_seen"] == (record.answer["main_character"] not in valid_names) for record in train + valid
    )
    assert 0.06 < share(valid, lambda record: not record.answer["name_seen"]) < 0.14


def test_no_story_occurs_twice(records):
    assert len({record.story for record in records}) == len(records)


# the files


def test_the_seed_determines_the_bytes(tmp_path):
    first, second, third = (
        write_sample(tmp_path / name, 60, 40, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert all(one.read_bytes() != other.read_bytes() for one, other in zip(first, third, strict=True))


def test_the_bytes_never_change(tmp_path):
    """Results on the sample are comparable only as long as it stays the same, on every machine and in every version."""
    written = b"".join(path.read_bytes() for path in write_sample(tmp_path, 400, 200))
    assert hashlib.sha256(written).hexdigest() == SHA256_OF_A_SMALL_SAMPLE


def test_a_longer_sample_begins_with_the_shorter_one(tmp_path):
    short, long = (write_sample(tmp_path / str(n), n, 10)[0].read_text(encoding="utf-8") for n in (50, 80))
    assert long.startswith(short)


def test_real_data_is_never_overwritten(tmp_path):
    real = tmp_path / "TinyStoriesInstruct-valid.txt"
    real.write_text("own", encoding="utf-8")
    with pytest.raises(UserError, match=r"TinyStoriesInstruct-valid\.txt"):
        write_sample(tmp_path, 10, 10)
    assert real.read_text(encoding="utf-8") == "own"
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


# the plots


def texts_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """(path, text) of every text in a part of the YAML file."""
    if isinstance(value, str):
        return [(path, value)]
    if isinstance(value, dict):
        return [item for key, part in value.items() for item in texts_of(part, (*path, key))]
    return [item for part in value for item in texts_of(part, path)] if isinstance(value, list) else []


def test_every_slot_of_every_text_exists(generator):
    always = {"hero", "pal", "elder", "stranger", "thing", "other", "adj", "kind", "friend", "someone", "trait", "day"}
    always |= {"day_plain", "home", "home_adjective", "landmark", "hobby", "hobby2", "hobby3"}
    always |= {prefix + form for prefix in ("", "pal_", "elder_", "stranger_") for form in PRONOUNS["boy"]}
    always |= {mood + number for mood in generator.words["feelings"] for number in ("", "2")}
    for plot in generator.plots:
        ways = [set(way) - {"tag"} for way in plot.get("ways", [{}])]
        assert all(way == ways[0] for way in ways), plot["plot"]
        known = always | ways[0] | ({"in_place", "to_place"} if "places" in plot else set())
        used = {slot.lower() for _, text in texts_of(plot) for slot in re.findall(r"<(\w+)>", text)}
        assert used <= known, plot["plot"]
    assert always | {"place"} >= FACTS


def test_every_condition_of_every_beat_can_be_true(generator):
    for plot in generator.plots:
        possible = {"any", "good", "bad", "talk", "quiet", "child", "animal", "maybe"}
        possible |= {way["tag"] for way in plot.get("ways", []) if "tag" in way}
        parts = [*plot["beats"], plot["summary"], plot["morals"], plot["orders"]]
        assert {word for part in parts for condition in part for word in condition.split()} <= possible, plot["plot"]


def test_only_beats_with_talk_have_quoted_speech(generator):
    for plot in generator.plots:
        for beat in plot["beats"]:
            for (condition, *_), text in texts_of(beat):
                assert ("“" in text) == ("talk" in condition.split()), (plot["plot"], text)
                assert text.count("“") == text.count("”")


def test_every_question_has_a_reason(generator):
    asking = [text for plot in generator.plots for _, text in texts_of(plot["beats"]) if "??" in text]
    assert len(asking) > 80
    assert all(re.fullmatch(r".* because .* \?\? Why .*\?", text) for text in asking)


def test_every_plot_can_end_both_ways_with_and_without_speech_and_with_a_moral(generator):
    rng = Random(0)
    for plot in generator.plots:
        for bad in (True, False):
            for talk in (True, False):
                story = generator.generate(plot, StorySpec(False, bad, talk, moral=True, new_name=False), rng)
                assert (story.ending, "Dialogue" in story.features) == ("bad" if bad else "good", talk)
