"""Models and data sets of the hub, against a local server with its API, which misbehaves as networks do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import pytest
from foreign_llamas import save_folder
from hub_server import HubServer, forget, hub_for, running_hub
from hypothesis import given
from hypothesis import strategies as st
from tiny import STORIES

from mini_chat_gpt.checkpoints.convert import main as import_main
from mini_chat_gpt.checkpoints.find import read_meta
from mini_chat_gpt.checkpoints.hub_models import local_model
from mini_chat_gpt.checkpoints.load import load_checkpoint, load_named_tokenizer
from mini_chat_gpt.common import hub
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_errors import cache_of
from mini_chat_gpt.common.hub_names import HubName, hub_name, repository_of
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.data.hub_data import chat_files
from mini_chat_gpt.tinystories.records import find_instruct_file, find_text

MODEL = "org/small"
NEEDED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, and an empty cache. The working directory is empty too, so that no name is a path."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with hub_for(monkeypatch, tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    save_folder(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def model(server: HubServer, model_files: dict[str, bytes]) -> HubServer:
    """The hub with a small Llama, and with files that are not needed."""
    useless = {"onnx/model.onnx": b"x", ".gitattributes": b"x", "tf_model.h5": b"x", "model.fp16.safetensors": b"x"}
    server.add(MODEL, {**model_files, **useless, "README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"The license."})
    return server


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hub:org/name", HubName("model", "org/name")),
        ("hub:org/name@v1.0", HubName("model", "org/name", "v1.0")),
        ("hub:org/name@refs/pr/3", HubName("model", "org/name", "refs/pr/3")),
        ("hub:gpt2", HubName("model", "gpt2")),
        ("hub:org/name/q8/model.gguf@main", HubName("model", "org/name", "main", "q8/model.gguf")),
        ("org/name-1.5_B", HubName("model", "org/name-1.5_B")),
        ("org/name@abc", HubName("model", "org/name", "abc")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("org/name/file", None),
        ("runs/sft", None),
        ("texts/chats.jsonl", None),
        ("../name", None),
        ("~/name", None),
        ("", None),
    ],
)
def test_a_name_of_the_hub_is_told_from_a_path(server: HubServer, text: str, name: HubName | None) -> None:
    assert hub_name(text, "model") == name
    assert name is None or hub_name(Path(text), "model") == name


def test_what_exists_here_is_a_path(server: HubServer) -> None:
    Path("org").mkdir()
    assert hub_name("org/name", "model") is None
    assert hub_name("hub:org/name", "model") is not None


@pytest.mark.parametrize(
    "text", ["hub:", "hub:/", "hub:org/", "hub:a b/c", "hub:org/../x", "hub:org/n@", "hub:org/n/../../x", "hub:-a/b"]
)
def test_an_impossible_name_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="is not a name of the hub; write hub:org/name"):
        hub_name(text, "model")


@given(st.text(max_size=40))
def test_every_text_is_a_name_a_path_or_one_sentence(text: str) -> None:
    for prefix in ("", "hub:"):
        try:
            name = hub_name(prefix + text, "model")
        except UserError:
            continue
        assert name is None or ".." not in name.repo.split("/") + (name.file or "").split("/")


# Models


def test_a_model_is_fetched_with_only_the_files_that_it_needs(
    model: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, _ = load_checkpoint(f"hub:{MODEL}", "cpu")
    folder = local_model(Path(MODEL))
    assert {path.name for path in folder.iterdir()} - {
        "LICENSE",
        "README.md",
        "special_tokens_map.json",
        "chat_template.jinja",
    } == NEEDED
    printed = capsys.readouterr().err
    assert f"hub:{MODEL}, commit {folder.name[:12]}: model.safetensors" in printed
    assert " free" in printed
    assert (loaded.origin.repository, loaded.origin.commit) == (MODEL, folder.name)
    assert repository_of(folder / "config.json") == (MODEL, folder.name)


def test_nothing_but_the_files_is_asked_for_and_nothing_about_this_machine_is_told(model: HubServer) -> None:
    local_model(Path(MODEL))
    asked = [request.split()[1] for request in model.requests]
    assert sum(path.startswith("/api/") for path in asked) == 1
    assert all(path.startswith((f"/api/models/{MODEL}", f"/{MODEL}/resolve/", "/cdn/")) for path in asked)
    assert not any("torch" in agent or "agent/" in agent for agent in model.agents)
    before = len(model.requests)
    forget()
    local_model(Path(MODEL))
    assert len(model.requests) == before + 1, "the files are in the cache"


def test_the_commit_travels_with_an_imported_model(model: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_main([MODEL, "dst"]) == 0
    commit = model.repositories[f"models/{MODEL}"].branches["main"]
    origin = read_meta(Path("dst"))["origin"]
    assert (origin["repository"], origin["commit"], origin["license"]) == (MODEL, commit, "mit")
    assert f"from {MODEL}; commit {commit[:12]}" in capsys.readouterr().out
    card = Path("dst/README.md").read_text()
    assert f"base_model:\n- '{MODEL}'" in card
    assert commit in card
    assert Path("dst/LICENSE").read_text() == "The license."


def test_a_family_that_is_unknown_is_refused_before_weights_are_fetched(server: HubServer) -> None:
    config = json.dumps({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}).encode()
    server.add("org/mamba", {"config.json": config, "model.safetensors": b"x" * 50_000})
    with pytest.raises(UserError, match="mamba"):
        local_model(Path("org/mamba"))
    assert not any("model.safetensors" in request for request in server.requests)


def test_a_tokenizer_is_fetched_without_weights(model: HubServer) -> None:
    assert load_named_tokenizer(MODEL).vocab_size > 256
    assert not any("model.safetensors" in request for request in model.requests)


def test_shards_are_fetched_with_their_index(server: HubServer, tmp_path: Path) -> None:
    save_folder(tmp_path / "sharded", max_shard_size="60KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "sharded").iterdir()}
    assert sum(name.startswith("model-0") for name in files) > 1
    server.add("org/sharded", files)
    load_checkpoint("org/sharded", "cpu")


def test_of_several_gguf_files_one_must_be_named(server: HubServer) -> None:
    server.add("org/gguf", {"m-Q4_K_M.gguf": b"a", "m-Q8_0.gguf": b"b", "README.md": b"c"})
    with pytest.raises(UserError, match=r"has 2 GGUF files; choose one, such as hub:org/gguf/m-Q8_0.gguf"):
        local_model(Path("org/gguf"))
    assert local_model(Path("hub:org/gguf/m-Q8_0.gguf")).read_bytes() == b"b"
    with pytest.raises(UserError, match=r"hub:org/gguf/m-Q2.gguf does not exist: hub:org/gguf has m-Q4_K_M.gguf"):
        local_model(Path("hub:org/gguf/m-Q2.gguf"))


def test_a_repository_without_a_model_is_one_sentence(server: HubServer) -> None:
    server.add("org/nothing", {"README.md": b"c", "flax_model.msgpack": b"d"})
    with pytest.raises(UserError, match=r"has no weights that can be read .* it has README.md, flax_model.msgpack"):
        local_model(Path("org/nothing"))


def test_a_listing_can_not_name_files_outside_the_cache(server: HubServer, tmp_path: Path) -> None:
    server.add("org/evil", {"../../../../evil/README.md": b"x", "/etc/LICENSE": b"x", "README.md": b"c"})
    listing = hub.list_files(HubName("model", "org/evil"))
    assert set(listing.sizes) == {"README.md"}


# Networks and servers


def test_a_broken_connection_is_resumed(model: HubServer, model_files: dict[str, bytes]) -> None:
    model.drop_after = [5000, 3000]
    folder = local_model(Path(MODEL))
    assert (folder / "model.safetensors").read_bytes() == model_files["model.safetensors"]
    assert "bytes=5000-" in model.ranges
    assert "bytes=8000-" in model.ranges


def test_a_download_that_was_given_up_is_resumed_by_the_next_command(
    model: HubServer, model_files: dict[str, bytes]
) -> None:
    large = {name for name, data in model_files.items() if len(data) >= 20_000}
    model.drop_after = [7000, *[0] * 20]
    with pytest.raises(UserError, match=r"the download of \S+ stopped: .* run the same command again to resume"):
        local_model(Path(MODEL))
    forget()
    model.drop_after, model.ranges = [], []
    folder = local_model(Path(MODEL))
    assert model.ranges[0] == "bytes=7000-"
    assert all((folder / name).read_bytes() == model_files[name] for name in large)


def test_a_file_of_another_size_is_not_used(model: HubServer) -> None:
    model.cut = 10
    with pytest.raises(UserError, match=r"size|stopped"):
        local_model(Path(MODEL))
    assert not list(Path(cache_of(HubName("model", MODEL))).rglob("snapshots/*/model.safetensors"))


def test_a_file_with_another_hash_is_not_used(model: HubServer) -> None:
    model.flipped = True
    with pytest.raises(UserError, match="was damaged in transfer"):
        local_model(Path(MODEL))
    forget()
    model.flipped = False
    load_checkpoint(MODEL, "cpu")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"gated": True},
            r"is gated: accept its conditions at http\S+/org/small, and log in with `hf auth login` or set HF_TOKEN",
        ),
        ({"status": 503}, r"answers with 503.*It is not in the cache"),
        ({"status": 418}, r"the hub answers with 418; try again later"),
        ({"html": True}, r"does not answer as the Hugging Face hub does"),
    ],
)
def test_a_refusal_is_one_sentence(model: HubServer, change: dict[str, Any], sentence: str) -> None:
    for name, value in change.items():
        setattr(model.repositories[f"models/{MODEL}"] if name == "gated" else model, name, value)
    with pytest.raises(UserError, match=sentence):
        local_model(Path(MODEL))


def test_a_gated_model_is_fetched_with_a_token(model: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model.repositories[f"models/{MODEL}"].gated, model.token = True, "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    load_checkpoint(MODEL, "cpu")


def test_a_token_that_is_not_valid_is_one_sentence(model: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        UserError, match=r"the hub refuses your token \(401\); renew it with `hf auth login`, or unset HF_TOKEN"
    ):
        local_model(Path(MODEL))


def test_a_model_that_does_not_exist_is_one_sentence(model: HubServer) -> None:
    with pytest.raises(
        UserError,
        match=r"There is no path org/smal here, and the hub has no model org/smal that you may see; check the name",
    ):
        load_checkpoint("org/smal", "cpu")
    with pytest.raises(UserError, match=r"there is no revision 'v9'"):
        load_checkpoint(f"hub:{MODEL}@v9", "cpu")


@pytest.mark.parametrize("way", ["offline", "no network"])
def test_without_the_hub_the_copy_in_the_cache_is_used(
    model: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    from huggingface_hub import constants

    commit = local_model(Path(MODEL)).name
    forget()
    if way == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    load_checkpoint(MODEL, "cpu")
    load_checkpoint(f"hub:{MODEL}@{commit}", "cpu")
    reason = "HF_HUB_OFFLINE is set" if way == "offline" else "no answer from http://127.0.0.1:9"
    assert reason in (line := capsys.readouterr().err.splitlines()[-1])
    assert f"Using the copy in the cache, commit {commit[:12]}." in line
    remedy = "unset it" if way == "offline" else "try again when there is a network"
    with pytest.raises(UserError, match=f"{reason}.* It is not in the cache .* either; {remedy}"):
        load_checkpoint("org/other", "cpu")
    with pytest.raises(UserError, match="It is not in the cache"):
        load_checkpoint(f"hub:{MODEL}@v2", "cpu")


def test_a_copy_in_the_cache_that_lacks_files_is_one_sentence(
    model: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (local_model(Path(MODEL)) / "model.safetensors").unlink()
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.* The copy in the cache is not complete"):
        local_model(Path(MODEL))


def test_a_revision_that_moves_gives_the_new_commit_and_a_commit_the_old_one(
    model: HubServer, model_files: dict[str, bytes]
) -> None:
    repository = model.repositories[f"models/{MODEL}"]
    old = local_model(Path(MODEL))
    repository.push({**model_files, "README.md": b"The second one."})
    assert local_model(Path(MODEL)) == old, "a command sees one version"
    forget()
    new = local_model(Path(MODEL))
    assert new != old
    assert (new / "README.md").read_bytes() == b"The second one."
    assert local_model(Path(f"hub:{MODEL}@{old.name}")) == old


def test_too_little_space_is_reported_before_anything_is_fetched(
    model: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(
        UserError, match=r"needs .*, but the disk of \S+ has 100 bytes left; free some space, or set HF_HOME"
    ):
        local_model(Path(MODEL))
    assert not any("resolve" in request for request in model.requests)


def test_a_cache_that_can_not_be_written_is_one_sentence(model: HubServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"Can't write .*cache"):
        local_model(Path(MODEL))


# Data sets


def chats(n: int, word: str = "Hi") -> bytes:
    record = {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "Yes."}]}
    return b"".join(json.dumps(record).encode() + b"\n" for _ in range(n))


def test_the_only_chat_file_of_a_data_set_is_used(server: HubServer) -> None:
    server.add("org/chats", {"README.md": b"x", "chats.jsonl": chats(3), "dataset_infos.json": b"{}"}, "datasets")
    found = list(read_conversations("org/chats"))
    assert len(found) == 3
    assert {one.path for one in found} == {"org/chats"}


def test_the_training_split_is_used_with_all_its_parts(server: HubServer) -> None:
    parts = {f"data/train-0000{n}-of-00002.jsonl": chats(n + 1) for n in range(2)}
    server.add("org/chats", {**parts, "data/test-00000-of-00001.jsonl": chats(9)}, "datasets")
    found = list(read_conversations("hub:org/chats"))
    assert [one.held_out for one in found] == [False] * 3 + [True] * 9
    assert found[2].place == "data/train-00001-of-00002.jsonl, line 2"


def test_one_file_of_a_data_set_can_be_named(server: HubServer) -> None:
    server.add("org/chats", {"a.jsonl": chats(1), "b.jsonl": chats(2), "c/d.json": b"[]"}, "datasets")
    with pytest.raises(
        UserError, match=r"hub:org/chats has several files; name one, or a folder, such as hub:org/chats/a.jsonl"
    ):
        chat_files("org/chats")
    assert len(list(read_conversations("hub:org/chats/b.jsonl"))) == 2
    with pytest.raises(UserError, match=r"hub:org/chats/e.jsonl does not exist"):
        chat_files("hub:org/chats/e.jsonl")


def test_a_folder_of_a_data_set_can_be_named(server: HubServer) -> None:
    files = {
        f"{config}/{split}.jsonl": chats(n) for config, n in (("main", 2), ("other", 3)) for split in ("train", "test")
    }
    server.add("org/chats", {"README.md": b"x", **files}, "datasets")
    with pytest.raises(UserError, match=r"several files; name one, or a folder, such as hub:org/chats/main \("):
        chat_files("org/chats")
    found = list(read_conversations("hub:org/chats/main"))
    assert [(one.place, one.held_out) for one in found[1:3]] == [
        ("main/train.jsonl, line 2", False),
        ("main/test.jsonl, line 1", True),
    ]
    with pytest.raises(UserError, match=r"hub:org/chats/mai does not exist"):
        chat_files("hub:org/chats/mai")


def test_a_data_set_in_parquet(server: HubServer, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [json.loads(line) for line in chats(2).splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x")
    server.add("org/chats", {"data/train-00000-of-00001.parquet": (tmp_path / "x").read_bytes()}, "datasets")
    assert [one.place for one in read_conversations("org/chats")] == ["record 1", "record 2"]


def test_a_data_set_in_another_format_is_one_sentence(server: HubServer) -> None:
    server.add("org/chats", {"data/train.bin": b"x"}, "datasets")
    with pytest.raises(UserError, match=r"hub:org/chats has no data \(.json.*\); it has data/train.bin"):
        chat_files("org/chats")
    with pytest.raises(UserError, match=r"the hub has no data set org/none"):
        chat_files("org/none")


def test_stories_are_found_under_their_known_names(server: HubServer) -> None:
    stories = {f"TinyStoriesV2-GPT4-{split}.txt": STORIES[0].encode() for split in ("train", "valid")}
    records = {f"TinyStories-Instruct-{split}.txt": b"Story: x" for split in ("train", "valid")}
    server.add("org/stories", {**stories, **records, "TinyStories-train.txt": b"other"}, "datasets")
    assert [find_text("hub:org/stories", split).name for split in ("train", "valid")] == list(stories)  # type: ignore[union-attr]
    assert [find_instruct_file("org/stories", split).name for split in ("train", "valid")] == list(records)
    assert find_text("hub:org/stories/TinyStories-train.txt", "train").read_bytes() == b"other"  # type: ignore[union-attr]
    assert not any("TinyStories_all" in request for request in server.requests)


def test_a_data_set_without_stories_is_one_sentence(server: HubServer) -> None:
    server.add("org/stories", {"text.txt": b"x"}, "datasets")
    with pytest.raises(
        UserError, match=r"hub:org/stories contains no stories \(looked for .*name one of its files: text.txt"
    ):
        find_text("org/stories", "train")


# Commands


def test_commands_take_names_of_the_hub(tmp_path: Path, model_files: dict[str, bytes]) -> None:
    with running_hub() as server:
        server.add(MODEL, model_files)
        server.add("org/chats", {"train.jsonl": chats(30)}, "datasets")
        home = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        small = ["wandb.enabled=false", *commands.BRIEF, "data.seq_len=64", "training.batch_size=2", "sft.eval_tasks=0"]
        train = [
            "sft.pretrained_checkpoint=org/small",
            "chats.files=hub:org/chats",
            "sft.max_steps=2",
            "lora.enabled=true",
        ]
        printed = commands.run(tmp_path, "sft", *train, *small, **home)
        assert "hub:org/chats, commit" in printed
        facts = json.loads((tmp_path / "runs" / "sft" / "run.json").read_text())
        assert MODEL in json.dumps(facts)
        assert str(tmp_path) not in json.dumps(facts)
        # The same adapter as PEFT writes it, on the hub: it names its base there, and the base's revision.
        (checkpoint,) = (tmp_path / "runs" / "sft").glob("step-*")
        settings = json.loads((checkpoint / "adapter_config.json").read_text())
        settings |= {"base_model_name_or_path": MODEL, "revision": "v1"}
        server.repositories[f"models/{MODEL}"].push(model_files, "v1")
        server.repositories[f"models/{MODEL}"].push({"README.md": b"the model is gone"})
        weights = (checkpoint / "adapter_model.safetensors").read_bytes()
        files = {"adapter_config.json": json.dumps(settings).encode(), "adapter_model.safetensors": weights}
        server.add("org/adapter", files)
        ask = ["--prompt", "Hi", "--max-new-tokens", "8", "--temperature", "0"]
        replies = [
            commands.run(tmp_path, "generate", "--checkpoint", path, *ask, **home)
            for path in ("runs/sft", "hub:org/adapter")
        ]
        shown = [
            [line for line in reply.splitlines() if "on cpu" not in line and "commit" not in line] for reply in replies
        ]
        assert shown[0][0] == shown[1][0] != ""
        error = commands.run(tmp_path, "import", "org/none", "dst", code=2, **home)
        assert "the hub has no model org/none" in commands.one_sentence(error)
