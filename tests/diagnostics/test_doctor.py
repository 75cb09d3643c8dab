"""`doctor` reports what is missing, predicts memory and time, suggests better settings, and writes nothing."""

import pytest
from commands import BRIEF, SMALL, make_clone, run, write_stories

from mini_chat_gpt.diagnostics.doctor import gaps_advice, memory_finding
from mini_chat_gpt.diagnostics.memory_plan import MemoryPlan


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = make_clone(tmp_path_factory.mktemp("clone"))
    write_stories(folder)
    return folder


def doctor(clone, *arguments, code=0):
    settings = [*SMALL, *BRIEF, "pretrain.dataset_path=stories-train.txt", "pretrain.tokenizer_vocab_size=300"]
    return run(clone, "doctor", "--job", "pretrain", *settings, "training.examples_per_step=8", *arguments, code=code)


def test_a_run_that_works_is_measured_and_nothing_is_written(clone):
    printed = doctor(clone)
    for words in ("M parameters", "needed", "at the peak of memory", "10,000 steps of", "micro-batch", "examples/s"):
        assert words in printed
    assert not (clone / "runs").exists()


def test_missing_data_is_an_error(clone):
    printed = doctor(clone, "pretrain.dataset_path=nowhere", code=2)
    assert "There is no text at nowhere" in printed


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
