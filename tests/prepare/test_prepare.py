"""The `prepare` command: what it writes and prints, and that it never replaces the user's files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from file_server import FileServer, running
from hub_server import hub_for
from tiny_disk import tiny_disk

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import temporary_name
from mini_chat_gpt.prepare import data_folder, download, own_files, prepare
from mini_chat_gpt.prepare.data_folder import read_source
from mini_chat_gpt.prepare.public_files import REPOSITORY
from mini_chat_gpt.prepare.sample_stories import write_sample

ROOT = Path(__file__).parent.parent.parent
NAMES = ("TinyStories-Instruct-train.txt", "TinyStories-Instruct-valid.txt")
TRAIN, VALID = "TinyStoriesInstruct-train.txt", "TinyStoriesInstruct-valid.txt"


def records(kind: str, number: int) -> bytes:
    texts = (
        f"Features: Dialogue\nWords: run, {kind}, red\nSummary: Ben runs {i}.\nStory: \n\nBen saw {kind} number {i}. "
        f'"Run!" said Ben. Ben ran home because Ben was tired.\n<|endoftext|>\n'
        for i in range(number)
    )
    return "".join(texts).encode()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small sample, and a server that is not waited for."""
    monkeypatch.setattr(prepare, "write_sample", lambda folder: write_sample(folder, 60, 20))
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "ATTEMPTS", 2)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running() as server:
        server.files = {NAMES[0]: records("cat", 300), NAMES[1]: records("dog", 40)}
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def run(folder: Path, *options: object, server: FileServer | None = None) -> int:
    """Run the command line. Without a server there is no network."""
    url = server.url.rpartition("/")[0] if server else "http://127.0.0.1:9"
    return prepare.main(["--folder", str(folder), "--url", url, *map(str, options)])


def part_of(server: FileServer, folder: Path) -> Path:
    """The unfinished training file."""
    return download.describe(f"{server.url.rpartition('/')[0]}/{NAMES[0]}").part(folder / TRAIN)


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder, less the caches."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix != ".npz"]
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in files}


# Downloading


def test_an_empty_folder_gets_both_public_files(folder: Path, server: FileServer) -> None:
    assert run(folder, server=server) == 0
    assert set(content(folder)) == {TRAIN, VALID, "SOURCE.json"}
    assert content(folder)[TRAIN] == server.files[NAMES[0]]
    assert content(folder)[VALID] == server.files[NAMES[1]]


def test_the_source_of_downloaded_files_is_recorded(folder: Path, server: FileServer) -> None:
    run(folder, server=server)
    source = read_source(folder)
    assert source["source"] == "public"
    assert source["files"][VALID]["url"].endswith(NAMES[1])
    assert source["files"][VALID]["bytes"] == len(server.files[NAMES[1]])
    assert "CDLA-Sharing-1.0" in source["license"]


def test_sizes_and_free_space_are_shown(folder: Path, server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--split", "valid", server=server)
    printed = capsys.readouterr().out
    assert f"valid: {len(server.files[NAMES[1]]) / 1000:.3g} kB from http://" in printed
    assert "free" in printed


def test_one_split_can_be_downloaded_alone_and_the_other_is_reported_as_missing(
    folder: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "--split", "valid", server=server)
    assert set(content(folder)) == {VALID, "SOURCE.json"}
    assert f"mini-chat-gpt prepare --folder {folder} --split train` downloads" in capsys.readouterr().out
    run(folder, server=server)
    assert TRAIN not in content(folder), "nobody asked for it"


def test_the_other_split_can_be_downloaded_later(folder: Path, server: FileServer) -> None:
    run(folder, "--split", "valid", server=server)
    run(folder, "--split", "both", server=server)
    assert content(folder)[TRAIN] == server.files[NAMES[0]]
    assert set(read_source(folder)["files"]) == {TRAIN, VALID}


def test_an_interrupted_download_is_completed_by_the_same_command(folder: Path, server: FileServer) -> None:
    server.drop_after = [10**9, 5000, 0, 0]  # the valid file comes first, and whole
    with pytest.raises(UserError, match="the same command resumes it from"):
        run(folder, server=server)
    assert set(content(folder)) == {VALID, "SOURCE.json", part_of(server, folder).name}
    server.drop_after = []
    run(folder, server=server)
    assert server.requests[-1] == "bytes=5000-"
    assert content(folder)[TRAIN] == server.files[NAMES[0]]
    assert set(read_source(folder)["files"]) == {TRAIN, VALID}


def test_a_download_that_stopped_between_the_files_is_completed_by_the_same_command(
    folder: Path, server: FileServer
) -> None:
    run(folder, server=server)
    (folder / TRAIN).unlink()
    run(folder, server=server)
    assert content(folder)[TRAIN] == server.files[NAMES[0]]


def test_an_interrupt_reports_what_is_kept(
    folder: Path, server: FileServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download.StepProgress, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "--split", "train", server=server)
    part = part_of(server, folder)
    assert f"kept in {part}; the same command resumes the download" in capsys.readouterr().out
    assert part.stat().st_size > 0


def test_a_file_that_the_server_lacks_changes_nothing(folder: Path, server: FileServer) -> None:
    del server.files[NAMES[0]]
    with pytest.raises(UserError, match="404"):
        run(folder, server=server)
    assert not folder.exists()


def test_too_little_space_is_reported_before_the_download(
    folder: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"the disk of .* has 1 kB left"):
        run(folder, server=server)
    assert server.requests == []


def test_without_an_address_the_files_come_from_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {NAMES[0]: records("cat", 300), NAMES[1]: records("dog", 40)}
    with hub_for(monkeypatch, tmp_path) as hub:
        commit = hub.add(REPOSITORY.repo, {**files, "README.md": b"x"}, "datasets").branches["main"]
        hub.drop_after = [5000, *[0] * 20]
        with pytest.raises(UserError, match="run the same command again to resume"):
            prepare.main(["--folder", str(folder)])
        assert set(content(folder)) == {VALID, "SOURCE.json", ".download-train"}
        hub.drop_after, hub.ranges = [], []
        assert prepare.main(["--folder", str(folder)]) == 0
        assert hub.ranges == ["bytes=5000-"]
    assert content(folder)[TRAIN] == files[NAMES[0]]
    assert content(folder)[VALID] == files[NAMES[1]]
    assert set(content(folder)) == {TRAIN, VALID, "SOURCE.json"}
    entry = read_source(folder)["files"][TRAIN]
    assert (entry["repository"], entry["commit"], entry["file"]) == (REPOSITORY.repo, commit, NAMES[0])
    assert f"from {REPOSITORY}/{NAMES[0]}, commit {commit[:12]}" in capsys.readouterr().out


def test_without_the_hub_the_sample_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_for(monkeypatch, tmp_path) as hub:
        hub.status = 503
        assert prepare.main(["--folder", str(folder)]) == 0
    assert read_source(folder)["source"] == "sample"
    printed = capsys.readouterr().out
    assert f"{REPOSITORY} can't be fetched" in printed
    assert "--replace-sample" in printed


# Without a network


def test_without_a_network_the_sample_is_written_and_the_command_for_later_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder) == 0
    assert read_source(folder)["source"] == "sample"
    assert f"mini-chat-gpt prepare --folder {folder} --replace-sample" in capsys.readouterr().out


def test_without_a_network_a_partial_download_is_kept_and_no_sample_written(folder: Path, server: FileServer) -> None:
    server.drop_after = [1000, 0]
    with pytest.raises(UserError, match="stopped"):
        run(folder, "--split", "train", server=server)
    before = content(folder)
    with pytest.raises(UserError, match=r"Can't reach.*is kept in"):
        run(folder)
    assert content(folder) == before


# Existing files


@pytest.mark.parametrize("names", [NAMES, (TRAIN, VALID)])
@pytest.mark.parametrize("options", [(), ("--split", "both")])
def test_existing_files_are_reported_and_unchanged(folder: Path, names: tuple[str, str], options: tuple[str]) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(records(name, 5))
    before = content(folder)
    assert run(folder, *options) == 0
    assert content(folder) == before


@pytest.mark.parametrize("option", ["--sample", "--source", "--label", "--derive"])
def test_nothing_replaces_the_users_data(folder: Path, tmp_path: Path, option: str) -> None:
    folder.mkdir()
    (folder / VALID).write_bytes(records("cat", 5))
    (tmp_path / "stories.txt").write_text("Ben ran.\n<|endoftext|>\nAnn ran.\n<|endoftext|>\n")
    with pytest.raises(UserError, match="which are not replaced"):
        run(folder, option, *([] if option == "--sample" else [tmp_path / "stories.txt"]))
    assert content(folder) == {VALID: records("cat", 5)}


def test_a_dangling_link_is_not_replaced(folder: Path, tmp_path: Path, server: FileServer) -> None:
    folder.mkdir()
    (folder / TRAIN).symlink_to(tmp_path / "unplugged" / "train.txt")
    with pytest.raises(UserError, match="There is no file"):
        run(folder, server=server)
    with pytest.raises(UserError):
        run(folder, "--sample")
    assert (folder / TRAIN).is_symlink()
    assert server.names == []


def test_replace_sample_does_not_change_other_data(folder: Path, server: FileServer) -> None:
    folder.mkdir()
    (folder / TRAIN).write_bytes(records("cat", 5))
    with pytest.raises(UserError, match="doesn't have the unchanged sample"):
        run(folder, "--replace-sample", server=server)
    assert content(folder) == {TRAIN: records("cat", 5)}


def test_replace_sample_does_not_change_an_edited_sample(folder: Path, server: FileServer) -> None:
    run(folder, "--sample")
    text = (folder / TRAIN).read_bytes()
    (folder / TRAIN).write_bytes(text[:-20] + b"!" + text[-19:])
    with pytest.raises(UserError, match="doesn't have the unchanged sample"):
        run(folder, "--replace-sample", server=server)


def test_replace_sample_replaces_the_sample_by_the_public_data(folder: Path, server: FileServer) -> None:
    run(folder, "--sample")
    run(folder, "--replace-sample", server=server)
    assert set(content(folder)) == {TRAIN, VALID, "SOURCE.json"}
    assert content(folder)[TRAIN] == server.files[NAMES[0]]
    assert read_source(folder)["source"] == "public"


def test_a_sample_stays_if_its_replacement_is_not_available(folder: Path, server: FileServer) -> None:
    run(folder, "--sample")
    before = content(folder)
    server.status = 404
    with pytest.raises(UserError, match="404"):
        run(folder, "--replace-sample", server=server)
    with pytest.raises(UserError, match="Can't reach"):
        run(folder, "--replace-sample")
    assert content(folder) == before


def test_public_files_are_not_mixed_into_a_sample(folder: Path, server: FileServer) -> None:
    run(folder, "--sample")
    (folder / VALID).unlink()
    with pytest.raises(UserError, match="--replace-sample"):
        run(folder, "--split", "valid", server=server)
    assert server.names == []


def test_writing_the_sample_twice_changes_nothing(folder: Path) -> None:
    run(folder, "--sample")
    before = content(folder)
    assert run(folder, "--sample") == 0
    assert content(folder) == before


def test_the_sample_is_reproducible(folder: Path, tmp_path: Path) -> None:
    for place in (folder, tmp_path / "again"):
        prepare.write_sample_folder(place, prepare.Console(quiet=True))
    del (first := content(folder))["SOURCE.json"], (second := content(tmp_path / "again"))["SOURCE.json"]
    assert first == second


# Own data by the command line (see test_own_files.py)


def test_own_records_are_copied_and_recorded_as_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(records("cat", 200))
    run(folder, "--source", tmp_path / "mine.txt", "--valid-fraction", "0.1")
    source = read_source(folder)
    assert (source["source"], source["options"]) == ("own", {"valid_fraction": 0.1})


def test_labeled_stories_are_recorded_as_derived(
    folder: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "--label", real_data / "tinystories" / "stories-valid.txt")
    assert read_source(folder)["source"] == "derived"
    assert "have no summaries" in capsys.readouterr().out


# Output


def test_standard_output_has_only_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--sample", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["source"]["source"] == "sample"
    assert report["files"]["train"]["records"] == 60


def test_leftovers_of_killed_processes_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--sample")
    (folder / ".draft-0123").mkdir()
    (folder / f"{TRAIN}.part").write_bytes(b"abc")
    capsys.readouterr()
    run(folder)
    printed = capsys.readouterr().out
    assert ".draft-0123 is left over" in printed
    assert f"{TRAIN}.part is an unfinished download (3 bytes)" in printed


def test_plain_stories_get_a_hint_to_label_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    for name in (TRAIN, VALID):
        (folder / name).write_text(
            'Ben saw a cat. Ben said, "Hi!"\n<|endoftext|>\nAnn ran. Ann was glad.\n<|endoftext|>\n'
        )
    run(folder)
    assert "--label FILE" in capsys.readouterr().out


# Invalid input


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty", b"", "is empty"),
        ("blank", b" \n \n", "is empty"),
        ("binary", b"PK\x03\x04\0\0\0", "not a text file"),
        ("no separator", b"Story: Once.\n" * 50, "there is no <|endoftext|> in it"),
        ("no story", b"Words: a, b\n<|endoftext|>\n" * 5, "has a story"),
    ],
)
def test_an_existing_file_that_is_not_a_story_file_is_reported_and_kept(
    folder: Path, name: str, data: bytes, words: str
) -> None:
    folder.mkdir()
    (folder / TRAIN).write_bytes(data)
    with pytest.raises(UserError, match=words.replace("|", r"\|")) as caught:
        run(folder)
    assert str(folder / TRAIN) in str(caught.value)
    assert content(folder) == {TRAIN: data}


def test_records_without_a_story_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    (folder / TRAIN).write_bytes(records("cat", 5) + b"Words: a, b, c\n<|endoftext|>\n")
    assert run(folder) == 0
    assert "1 record without a story left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--valid-fraction", "1"), "--valid-fraction is 1"),
        (("--seq-len", "3"), "--seq-len is 3"),
        (("--source", "a", "b", "c"), "takes one path, or two"),
        (("--source", "nowhere.txt"), "nowhere.txt"),
        (("--tokenizer", "nowhere.tiktoken"), "nowhere.tiktoken"),
    ],
)
def test_an_invalid_option_is_reported_before_anything_is_written(
    folder: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(folder, *options)
    assert not folder.exists()


def test_a_file_instead_of_a_folder_is_rejected(folder: Path) -> None:
    folder.write_text("mine")
    with pytest.raises(UserError, match="is a file, not a folder"):
        run(folder)
    assert folder.read_text() == "mine"


def test_a_damaged_source_file_is_reported(folder: Path) -> None:
    run(folder, "--sample")
    (folder / "SOURCE.json").write_text("{")
    with pytest.raises(UserError, match=r"SOURCE\.json is damaged"):
        run(folder)


@pytest.mark.parametrize("option", ["--sample", "--source", "--label"])
def test_a_full_disk_leaves_no_file_with_a_final_name(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (prepare, own_files):  # another process fills the disk after the check
        monkeypatch.setattr(module, "require_space", lambda *_: 0)
    mine = tmp_path / "mine.txt"
    mine.write_bytes(
        records("cat", 2000)
        if option == "--source"
        else b"".join(b"Ben ran %d.\n<|endoftext|>\n" % i for i in range(9000))
    )
    with tiny_disk(tmp_path / "disk", kilobytes=64) as disk:
        with pytest.raises(UserError, match="no space left"):
            run(disk / "data", option, *([] if option == "--sample" else [mine]))
        assert list((disk / "data").iterdir()) == []


def test_a_users_mistake_gives_one_sentence_and_exit_code_2(folder: Path) -> None:
    folder.mkdir()
    (folder / TRAIN).write_bytes(b"")
    command = [sys.executable, str(ROOT / "prepare_sft_data.py"), "--folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_what_a_killed_process_left_is_removed_by_the_next_start(folder: Path) -> None:
    run(folder, "--sample")
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    draft = temporary_name(folder / "draft")
    owner = draft.name.split("-")
    draft.with_name("-".join([owner[0], str(ended.pid), *owner[2:]])).mkdir()
    run(folder)
    assert sorted(path.name for path in folder.iterdir() if path.suffix in (".tmp", ".json")) == ["SOURCE.json"]
