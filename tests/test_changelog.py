"""The tables of CHANGELOG.md agree with the code."""

import re
from importlib.util import find_spec
from pathlib import Path

from mini_chat_gpt.config_file import RENAMED_KEYS

TEXT = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[tuple[list[str], list[str]]]:
    """The names in the first and the second column of the table under a heading."""
    section = re.split(r"^##+ ", TEXT.split(f"### {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", old), re.findall(r"`([^`]+)`", new)) for old, new in cells]


def test_every_renamed_setting_is_listed():
    listed = {old: new for olds, news in rows("Renamed settings") for old, new in zip(olds, news, strict=True)}
    assert listed == {old: f"{old.rpartition('.')[0]}.{new}" for old, new in RENAMED_KEYS.items()}


def test_moved_modules_are_where_the_table_says():
    moves = rows("Moved modules")
    assert len(moves) > 90
    for olds, news in moves:
        assert news, olds
        for new in news:
            assert find_spec(f"mini_chat_gpt.{new}"), f"{olds} -> {new}"
