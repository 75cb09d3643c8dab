"""Text for a terminal: wrapped to its width between words, without characters that move the cursor."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth, wcwidth

from mini_chat_gpt.chat.terminal import Interrupts, WordWrap, harmless

TEXTS = st.text(st.sampled_from("ab.,  \n\t🦔你é\u0301\u200d\x1b"), max_size=80)


def wrap(pieces: list[str], width: int) -> str:
    written: list[str] = []
    wrapper = WordWrap(written.append, width)
    for piece in pieces:
        wrapper.push(piece)
    wrapper.flush()
    return "".join(written)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("one  two", ["one  two"]),
        ("a\n\n b ", ["a", "", " b"]),
        ("incomprehensibilities", ["incomprehe", "nsibilitie", "s"]),
        ("an incomprehensibility", ["an", "incomprehe", "nsibility"]),
        ("你好你好你好", ["你好你好你", "好"]),
        ("abc 🦔🦔🦔🦔", ["abc 🦔🦔🦔", "🦔"]),
    ],
)
def test_lines_are_wrapped_between_words(text, lines):
    assert wrap([text], 10).split("\n") == lines


@given(TEXTS, st.integers(2, 20))
def test_no_line_is_wider_than_the_terminal_and_no_character_is_lost(text, width):
    wrapped = wrap([text], width)
    assert all(sum(max(0, wcwidth(char)) for char in line) <= width for line in wrapped.split("\n"))
    assert "".join(wrapped.split()) == "".join(harmless(text).split())


@given(st.lists(TEXTS, max_size=6), st.integers(2, 20))
def test_the_result_does_not_depend_on_the_pieces(pieces, width):
    assert wrap(pieces, width) == wrap(["".join(pieces)], width)


def test_a_combining_character_has_no_width():
    assert wrap(["é" * 10, " x"], 10) == "é" * 10 + "\nx"
    assert wcswidth("é") == 1


def test_control_characters_are_replaced_and_line_breaks_kept():
    assert harmless("a\x1b[2J\r\nb\tc\x07\x9b") == "a\ufffd[2J\nb    c\ufffd\ufffd"


@pytest.fixture
def interrupts():
    interrupts = Interrupts()
    yield interrupts
    interrupts.close()


def test_ctrl_c_ends_the_pieces_and_is_ignored_elsewhere(interrupts):
    def pieces():
        yield "one"
        signal.raise_signal(signal.SIGINT)
        yield "two"

    signal.raise_signal(signal.SIGINT)
    assert list(interrupts.until_pressed(pieces())) == ["one"]
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_a_piece_is_shown_ends_the_pieces_after_it(interrupts):
    shown = []
    for piece in interrupts.until_pressed(iter("abc")):
        shown.append(piece)
        signal.raise_signal(signal.SIGINT)
    assert shown == ["a"]


def test_the_handler_of_ctrl_c_is_restored():
    before = signal.getsignal(signal.SIGINT)
    Interrupts().close()
    assert signal.getsignal(signal.SIGINT) == before
