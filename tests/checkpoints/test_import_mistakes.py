"""What is typed by mistake with a model from elsewhere: one sentence that says what to do, and nothing is written."""

import re
import shutil
from pathlib import Path

import pytest
from foreign_llamas import save_folder

from mini_chat_gpt.cli import dispatch
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import SFTSection
from mini_chat_gpt.training.run_folder import find_run_folder

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder in shards (hf), what import made of it (ours), copies with one fault each, and files of other kinds."""
    place = tmp_path_factory.mktemp("models")
    save_folder(place / "hf", max_shard_size="60KB")
    assert dispatch(["import", str(place / "hf"), str(place / "ours")]) == 0
    for fault in ("no_tokenizer", "no_shard", "other_shard"):
        shutil.copytree(place / "hf", place / fault)
    (place / "no_tokenizer" / "tokenizer.json").unlink()
    shards = sorted((place / "hf").glob("*.safetensors"))
    (place / "no_shard" / shards[-1].name).unlink()
    index = place / "other_shard" / INDEX
    index.write_text(index.read_text().replace(shards[-1].name, "model-00077-of-00077.safetensors"))
    shutil.copytree(place / "no_tokenizer", place / "old_tokenizer")
    (place / "old_tokenizer" / "tokenizer.model").write_bytes(b"\n\x0e")
    (place / "notes.txt").write_text("The model is in the other folder.\n")
    shutil.copy(shards[0], place / "alone.safetensors")
    return place


def contents(folder: Path) -> set[str]:
    """Names in a folder, without the record of checkpoints that have been verified."""
    return {path.name for path in folder.iterdir()} - {".verified.json"}


MISTAKES = {
    "import no_tokenizer new": "no_tokenizer has no tokenizer.json; copy it from where the weights come from.",
    "import old_tokenizer new": "old_tokenizer has no tokenizer.json; make it of tokenizer.model with transformers: ",
    "import no_shard new": ".safetensors is missing, but the index next to it names it; download the complete folder.",
    "import other_shard new": "model-00077-of-00077.safetensors is missing, but the index next to it names it",
    "import new hf": "There is no new, but there is hf: the existing model comes first, then the new folder.",
    "import hf ours": "ours exists already and is not overwritten",
    "import hf hf": "hf exists already and is not overwritten",
    "import nowhere new": "There is no checkpoint at nowhere",
    "import hf/config.json new": "hf/config.json is only a part of a model; give its folder, hf.",
    f"import hf/{INDEX} new": f"hf/{INDEX} is only a part of a model; give its folder, hf.",
    "import ours/model.safetensors new": "ours/model.safetensors is only a part of a model; give its folder, ours.",
    "import alone.safetensors new": "alone.safetensors has weights, but there is no config.json next to it",
    "import notes.txt new": "notes.txt is a text, not a model; give a Hugging Face folder, a GGUF file, ",
    "import hf new --tokenizer gpt2": "hf has its own tokenizer; omit --tokenizer.",
    "import ours new --tokenizer gpt2": "ours has its own tokenizer; omit --tokenizer.",
    "merge hf new": "hf is not an adapter but a complete model; there is nothing to merge.",
    "merge ours new": "ours is already a complete model; there is nothing to merge.",
    "merge new ours": "There is no new, but there is ours: the existing model comes first, then the new folder.",
    "chat --checkpoint hf/tokenizer.json": "hf/tokenizer.json is only a part of a model; give its folder, hf.",
    "chat --checkpoint no_shard": "is missing, but the index next to it names it",
    "generate --prompt Hi --checkpoint no_tokenizer": "no_tokenizer has no tokenizer.json",
    "evaluate --checkpoint notes.txt --prompts prompts.yaml": "prompts.yaml",
    "selfcheck --device cpu --checkpoint other_shard": "model-00077-of-00077.safetensors is missing",
    "sft sft.pretrained_checkpoint=no_shard chats.files=notes.txt": "is missing, but the index next to it names it",
    "doctor sft sft.pretrained_checkpoint=hf": "Which training is checked is an option: `mini-chat-gpt doctor --job sft`.",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(models, monkeypatch, typed):
    monkeypatch.chdir(models)
    monkeypatch.setenv("COLUMNS", "200")
    before = contents(models)
    with pytest.raises(UserError, match=re.escape(MISTAKES[typed])):
        dispatch(typed.split())
    assert contents(models) == before


def test_a_run_is_never_written_into_a_folder_with_a_model(models):
    for name in ("hf", "ours"):
        section = SFTSection(save_dir=str(models / name))
        assert find_run_folder(section).folder == models / f"{name}-2"


def test_a_model_from_elsewhere_is_not_taken_for_the_base_of_an_adapter(models, tmp_path, monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.checkpoints.merge.is_adapter", lambda folder: True)
    with pytest.raises(
        UserError, match=r"hf is a model from elsewhere; the base must be a checkpoint: `mini-chat-gpt import"
    ):
        dispatch(["merge", str(models / "ours"), str(tmp_path / "new"), "--base", str(models / "hf")])
