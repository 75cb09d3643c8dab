"""What a story states explicitly: sentences, speech, morals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_main_character import labelled_stories

from mini_chat_gpt.tinystories.facts import MASK, first_speech, is_silent, mask_speech, sentence_spans, stated_moral
from mini_chat_gpt.tinystories.records import stories


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("No end\n\nAnother line", ["No end", "Another line"]),
        ('"Hi." He left.', ['"Hi."', "He left."]),
        ("Mr. Hill met Mrs. Hill. They sat.", ["Mr. Hill met Mrs. Hill.", "They sat."]),
        ("It was 3.5 miles... far. ", ["It was 3.5 miles...", "far."]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_sentences_end_at_punctuation_and_line_breaks(text, expected):
    assert sentences(text) == expected


@given(st.text(alphabet='ab .!?"\n'))
def test_sentences_contain_every_character_but_blanks(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("speech", ['"Come home," said Mom.', "“Come home,” said Mom.", "Mom said, 'Let's come home.'"])
def test_quoted_speech_is_found_in_every_style(speech):
    assert first_speech("Tom ran. " + speech) is not None


@pytest.mark.parametrize("text", ['The sign said "stop" to all.', "He didn't go. It was Tom's."])
def test_words_in_quotation_marks_and_apostrophes_are_not_speech(text):
    assert first_speech(text) is None


def test_masking_keeps_the_position_of_every_character():
    story = 'Tom said, "Come, Sue!" and ran. "I never closed this\nThe end.'
    masked = mask_speech(story)
    assert len(masked) == len(story)
    assert masked.replace(MASK, "") == "Tom said,  and ran. \nThe end."


@pytest.mark.parametrize("text", ["Mom told him to stop.", "They talked.", 'A "thing".', "Sue asked for cake."])
def test_reported_speech_is_not_silence(text):
    assert not is_silent(text)


def test_a_story_without_speech_is_silent():
    assert is_silent("The cat sat. It didn't move.")


@pytest.mark.parametrize(
    ("text", "moral"),
    [
        ("Bye. The moral of the story is: do not steal. Stealing is wrong.", "Do not steal."),
        ("The moral of this story is that sharing can bring joy!", "Sharing can bring joy."),
        ("The moral of the story is to always be kind and to share.", "Always be kind and share."),
        ("The moral of the story is not to steal.", "Do not steal."),
        ("The moral of the story is: 'Always help those in need.'", "Always help those in need."),
        ("Moral of the story: Pride goes before a fall.", "Pride goes before a fall."),
        ("She learned an important lesson that day: never lie.", "Never lie."),
        ("They learned that it's better to share than to fight.", "It's better to share than to fight."),
        ("The ants learned that nails can be sharp and that they should go.", "Nails can be sharp."),
        ("He learned to always listen to others.", "Always listen to others."),
    ],
)
def test_a_stated_moral_becomes_a_complete_sentence(text, moral):
    found = stated_moral(text)
    assert found is not None
    assert found[0] == moral


@pytest.mark.parametrize(
    "text",
    [
        "They learned a lesson.",
        "Tom learned that his mom was home.",
        "She learned to ride a bike.",
        "Lily learned that Tom is her friend.",
        "He learned his lesson and never did it again.",
        "They learned that they should have worked together.",
        "She told him the moral of the story.",
        "The story has a moral value.",
        "They learned not to poke things and lived happily ever after.",
    ],
)
def test_a_statement_about_events_is_not_a_moral(text):
    assert stated_moral(text) is None


def test_the_span_of_the_statement_is_returned():
    story = "They sat. The moral of the story is to share. The end."
    found = stated_moral(story)
    assert found is not None
    assert story[slice(*found[1])] == "moral of the story is to share."


def test_speech_agrees_with_human_labels_of_real_stories(real_data):
    read = [pair for split in ("train", "valid") for pair in labelled_stories(real_data, split)]
    spoken = [label["dialogue"] for story, label in read if first_speech(story)]
    silent = [label["dialogue"] for story, label in read if is_silent(story)]
    assert sum(spoken) >= 0.98 * len(spoken)
    assert sum(silent) <= 0.02 * len(silent)
    assert len(spoken) + len(silent) >= 0.6 * len(read)


def test_morals_agree_with_human_labels_of_real_stories(real_data):
    read = [pair for split in ("train", "valid") for pair in labelled_stories(real_data, split)]
    found = [label["moral"] is not None for story, label in read if stated_moral(story)]
    assert len(found) >= 5
    assert sum(found) >= 0.9 * len(found)


def test_morals_of_real_stories_are_clean_sentences(real_data):
    morals = [
        found[0] for story in stories(real_data / "tinystories" / "stories-train.txt") if (found := stated_moral(story))
    ]
    assert len(morals) > 800
    assert all(
        moral[0].isupper() and moral.endswith(".") and "\n" not in moral and '"' not in moral for moral in morals
    )
