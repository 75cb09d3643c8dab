"""Which words are forms of another one."""

import pytest

from mini_chat_gpt.tinystories.word_forms import forms, uses, words_of


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("cat", "cat cats"),
        ("box", "box boxes"),
        ("bush", "bushes"),
        ("berry", "berries"),
        ("boy", "boys"),
        ("potato", "potatoes"),
        ("piano", "pianos"),
        ("child", "child children"),
        ("leaf", "leaves"),
        ("jump", "jumps jumped jumping jumper"),
        ("dance", "dances danced dancing dancer"),
        ("stop", "stops stopped stopping"),
        ("hop", "hopped hopping"),
        ("hope", "hoped hoping"),
        ("visit", "visits visited visiting"),
        ("travel", "traveled travelled traveling"),
        ("play", "plays played playing player"),
        ("fix", "fixes fixed fixing"),
        ("cry", "cries cried crying"),
        ("tie", "ties tied tying"),
        ("see", "sees saw seen seeing"),
        ("agree", "agreed agreeing"),
        ("go", "goes went gone going"),
        ("run", "runs ran running runner"),
        ("quit", "quits quitting"),
        ("begin", "began begun beginning"),
        ("shine", "shone shined shining"),
        ("big", "bigger biggest"),
        ("happy", "happier happiest happily"),
        ("nice", "nicer nicest nicely"),
        ("gentle", "gently"),
        ("quick", "quickly quicker"),
        ("true", "truly"),
        ("good", "better best"),
    ],
)
def test_every_form_of_a_word_counts(word, others):
    assert set(others.split()) <= forms(word)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("hop", "hoped"),
        ("hope", "hopped"),
        ("star", "stared"),
        ("see", "seed"),
        ("moth", "mother"),
        ("flow", "flower"),
        ("ear", "early"),
        ("be", "bed"),
        ("cat", "cattle"),
        ("car", "care"),
        ("on", "only"),
    ],
)
def test_a_word_that_only_looks_alike_does_not_count(word, other):
    assert other not in forms(word)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("“RUNNING is fun!”", "run"),
        ("Tom’s dog", "Tom"),
        ("'Hello,' he said", "hello"),
        ("They ate ice-cream.", "ice cream"),
        ("two ice creams", "ice-cream"),
        ("He has 3 cats", "3"),
        ("They smile.", "smiled"),
        ("one party", "parties"),
    ],
)
def test_case_punctuation_and_hyphens_do_not_matter(text, word):
    assert uses(text, word)


@pytest.mark.parametrize(
    ("text", "word"), [("category", "cat"), ("the ice was cream", "ice cream"), ("", "cat"), ("cat", "!")]
)
def test_parts_of_words_and_scattered_words_do_not_count(text, word):
    assert not uses(text, word)


def test_clitics_are_removed():
    assert words_of("It isn’t Tom's.") == ["it", "isn", "tom"]
