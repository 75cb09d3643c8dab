"""`doctor` reports what is missing, predicts memory and time, suggests better settings, and writes nothing."""

import json

import pytest
from commands import BRIEF, SMALL, make_clone, run, write_stories
from tiny import chat_tokenizer, tiny_config, tiny_model

from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.diagnostics.doctor import (
    gaps_advice,
    memory_finding,
    prepare_run,
    prepare_what_is_there,
    read_weights,
)
from mini_chat_gpt.diagnostics.memory_plan import MemoryPlan


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = make_clone(tmp_path_factory.mktemp("clone"))
    write_stories(folder)
    return folder


def doctor(clone, *arguments, code=0):
    settings = [*SMALL, *BRIEF, "pretrain.dataset_path=stories-train.txt", "pretrain.tokenizer_vocab_size=300"]
    return run(clone, "doctor", "--job", "pretrain", *settings, "training.examples_per_step=8", *arguments, code=code)


@pytest.mark.slow
def test_a_run_that_works_is_measured_and_nothing_is_written(clone):
    printed = doctor(clone)
    for words in ("M parameters", "needed", "at the peak of memory", "10,000 steps of", "micro-batch", "examples/s"):
        assert words in printed
    assert not (clone / "runs").exists()


@pytest.mark.slow
def test_missing_data_is_an_error_and_the_rest_is_planned_with_made_up_examples(clone):
    printed = doctor(clone, "pretrain.dataset_path=nowhere", code=2)
    assert "There is no text at nowhere" in printed
    for words in ("made-up examples of", "M parameters", "at the peak of memory", "10,000 steps of", "micro-batch"):
        assert words in printed
    assert not (clone / "runs").exists()


def test_made_up_examples_have_the_length_and_the_targets_of_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = chat_tokenizer()
    save_checkpoint(tmp_path / "base", tiny_model(tokenizer.vocab_size), tokenizer)
    sft = {"pretrained_checkpoint": "base", "dataset_path": "nowhere", "max_steps": 4}
    curriculum = [{"share": 0.5, "seq_len": 32}]
    config = tiny_config(
        sft=sft, data={"seq_len": 50, "num_workers": 0, "curriculum": curriculum}, lora={"enabled": True}
    )
    run = prepare_run(config, "sft", without_data=True)
    assert {len(example.ids) for step in run.steps for example in step} == {32, 50}
    assert sum(run.steps[-1][0].loss_mask) == 12
    assert run.trainer.model.adapter is not None
    assert run.trainer.total_steps == 4
    findings = []
    assert prepare_what_is_there(config, "sft", findings) is not None
    assert [finding.level for finding in findings] == ["error", "note"]
    assert prepare_what_is_there(tiny_config(sft=sft | {"pretrained_checkpoint": "none"}), "sft", findings) is None
    assert {path.name for path in tmp_path.iterdir()} <= {"base", ".verified.json"}


def test_a_model_that_cannot_fit_is_reported_before_it_is_made(clone):
    printed = doctor(clone, "model.n_embd=8192", "model.n_head=64", "model.n_layer=90", code=2)
    assert "weights and gradients alone take" in printed


def test_a_run_that_needs_more_memory_than_is_free_names_the_settings_to_lower():
    plan = MemoryPlan(weights=3 * 2**30, baseline=2**28)
    assert memory_finding(plan, free=2**30).level == "error"
    assert "lower training.batch_size" in memory_finding(plan, free=2**30).what
    assert memory_finding(plan, free=2**33).level == "ok"


def test_many_gaps_give_advice_unless_the_setting_is_already_there(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert gaps_advice(MemoryPlan(logits=100, gaps=10)) is None
    assert "tcache_count=0" in gaps_advice(MemoryPlan(logits=100, gaps=50))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
    assert gaps_advice(MemoryPlan(logits=100, gaps=50)) is None


@pytest.mark.parametrize("frozen", ["float32", "nf4"])
def test_a_short_run_is_planned_with_its_own_steps_and_weights(tmp_path, frozen):
    tokenizer = chat_tokenizer()
    save_checkpoint(tmp_path / "base", tiny_model(tokenizer.vocab_size), tokenizer)
    chats = [{"instruction": "Count.", "output": f"{n}"} for n in range(9)]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    config = tiny_config(
        sft={"pretrained_checkpoint": str(tmp_path / "base"), "save_dir": str(tmp_path / "run"), "max_steps": 3},
        chats={"files": str(tmp_path / "chats.json")},
        lora={"enabled": True, "rank": 2, "frozen": frozen},
    )
    run = prepare_run(config, "sft")
    assert len(run.steps) == 3
    model = run.trainer.model
    tables = 2 * 4 * model.config.context_length * model.config.head_size // 2  # of rotary positions
    n_bytes = read_weights(model) - tables
    assert n_bytes == 4 * model.n_parameters() if frozen == "float32" else n_bytes < 4 * model.n_parameters()
    assert not (tmp_path / "run").exists()
