"""Text stays encodable and can't disturb a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.common.text import clean, well_formed, with_places


@given(st.text(st.characters(codec=None)))
def test_well_formed_text_can_be_encoded_and_ordinary_text_is_unchanged(text):
    made = well_formed(text)
    made.encode("utf-8")
    assert made == text or any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def test_a_surrogate_pair_becomes_one_character_and_a_lone_one_is_replaced():
    assert well_formed("\ud83d\ude00 \ud83d") == "😀 \ufffd"


@given(st.text())
def test_clean_text_is_one_printable_line(text):
    made = clean(text)
    assert made.isprintable()
    assert "  " not in made


def test_an_escape_sequence_loses_its_escape():
    assert clean("a\n\x1b[2J b\u00a0 c") == "a \ufffd[2J b c"


def test_a_note_lists_the_first_places_and_how_many_more_there_are():
    assert with_places("Two", ["a", "b"], 2) == "Two\n  a\n  b"
    assert with_places("Many", ["a", "b"], 1234) == "Many\n  a\n  b\n  and 1,232 more"
