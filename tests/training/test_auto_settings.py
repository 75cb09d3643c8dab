"""Settings that a run chooses itself: learning rate, number of steps, warm-up; and the warning if the loss does not fall."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tiny import CountingDataset, chat_tokenizer, tiny_config, tiny_model, tiny_tokenizer, write_records

from mini_chat_gpt import train
from mini_chat_gpt.checkpoints.find import steps_of
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import LoraSettings, PretrainSection, SFTSection
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.lora import Adapter, add_lora
from mini_chat_gpt.training import auto_rate
from mini_chat_gpt.training.auto_rate import auto_learning_rate, is_untrained
from mini_chat_gpt.training.early_loss import compared_after
from mini_chat_gpt.training.job import Job, Stage, count_steps, with_auto_steps
from mini_chat_gpt.training.monitor import Monitor, read_metrics
from mini_chat_gpt.training.optim import warmup_length
from mini_chat_gpt.training.saved_state import read_progress
from mini_chat_gpt.training.train_step import TrainStep
from mini_chat_gpt.training.trainer import Trainer


def trained(model):
    """The model with norms that differ from their initial weights, as after training."""
    with torch.no_grad():
        model.norm.weight += 0.01
    return model


def sized(n_embd, n_layer=2):
    return trained(tiny_model(300, n_embd=n_embd, n_layer=n_layer))


# The learning rate


def test_the_rate_falls_with_the_size_of_the_model():
    rates = [auto_learning_rate(sized(n_embd))[0] for n_embd in (64, 128, 256)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 1.5 * rates[-1]


def test_an_adapter_has_a_higher_rate_than_all_weights_and_its_rank_does_not_matter():
    full, reason = auto_learning_rate(sized(256, 4))
    assert "all weights" in reason
    adapters = []
    for rank in (2, 16):
        model = sized(256, 4)
        lora = LoraSettings(rank=rank)
        model.adapter = Adapter(lora, tuple(add_lora(model, lora)))
        adapters.append(auto_learning_rate(model))
        assert "adapter" in adapters[-1][1]
    assert adapters[0][0] == adapters[1][0] > full


@pytest.mark.parametrize("changes", [{}, {"norm": "layernorm", "bias": True}, {"qk_norm": True}])
def test_a_model_that_was_never_trained_is_recognized_until_its_first_step(changes):
    model = tiny_model(300, n_embd=256, n_layer=4, **changes)
    rate, reason = auto_learning_rate(model)
    assert is_untrained(model)
    assert "untrained" in reason
    config = tiny_config(sft={"learning_rate": 1e-3})
    engine = TrainStep(model, config, config.sft, pick_precision("fp32", torch.device("cpu")))
    engine.train_step([CountingDataset()[0]])
    assert not is_untrained(model)
    assert auto_learning_rate(model)[0] < rate


def test_no_model_is_so_small_that_its_rate_diverges():
    assert auto_learning_rate(sized(16))[0] <= auto_rate.HIGHEST


def make_base(folder, seed=0):
    """A base model that counts as trained, without control tokens."""
    tokenizer = tiny_tokenizer()
    save_checkpoint(folder, trained(tiny_model(tokenizer.vocab_size, seed)), tokenizer, {})
    return folder


def settings(tmp_path, *more):
    """A short run on chats."""
    if not (tmp_path / "base").exists():
        make_base(tmp_path / "base")
        lines = [json.dumps({"instruction": f"Say {n}.", "output": f"It is {n}."}) for n in range(40)]
        (tmp_path / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return load_config(
        None,
        [
            f"sft.pretrained_checkpoint={tmp_path / 'base'}", f"chats.files={tmp_path / 'chats.jsonl'}", f"sft.save_dir={tmp_path / 'run'}",
            "wandb.enabled=false", "system.device=cpu", "data.num_workers=0", "system.threads=1", "chats.valid_share=0.1", *more,
        ],
    )  # fmt: skip


def test_number_and_reason_are_printed_and_the_settings_stay_auto(tmp_path, capsys):
    result = train(settings(tmp_path))
    expected = auto_learning_rate(trained(tiny_model(304)))[0]
    printed = " ".join(capsys.readouterr().out.split())
    assert result.learning_rate == expected
    assert f"learning rate {expected:g} (auto: all weights of a model of 0.0" in printed
    assert "length 3 epochs of the chats (auto)" in printed
    assert result.steps == 27  # 36 chats of 40 are trained on, 4 a step
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert (saved.sft.learning_rate, saved.sft.max_steps, saved.sft.epochs) == ("auto", "auto", None)
    logged = [line["sft/lr"] for line in read_metrics(tmp_path / "run") if "sft/lr" in line]
    assert max(logged) == pytest.approx(expected)


def test_given_numbers_are_used_and_no_reason_is_printed(tmp_path, capsys):
    result = train(settings(tmp_path, "sft.learning_rate=3e-3", "sft.max_steps=5"))
    printed = capsys.readouterr().out
    assert (result.steps, result.learning_rate) == (5, 3e-3)
    assert "learning rate 0.003\n" in printed
    assert "auto:" not in printed


def test_a_resumed_run_keeps_the_rate_that_was_chosen_when_it_began(tmp_path, monkeypatch, capsys):
    """Even if its model is not untrained any more, or another version would choose another rate."""
    tokenizer = tiny_tokenizer()
    config = settings(tmp_path)
    save_checkpoint(tmp_path / "untrained", tiny_model(tokenizer.vocab_size), tokenizer, {})
    more = [f"sft.pretrained_checkpoint={tmp_path / 'untrained'}", "sft.save_interval=5"]
    monkeypatch.setattr(auto_rate, "HIGHEST", 1.0)
    whole = train(settings(tmp_path, *more, f"sft.save_dir={tmp_path / 'whole'}"))

    def stop(trainer, step, metrics):
        if step == 10:
            trainer.stop.request("time limit", "")

    monkeypatch.undo()
    monkeypatch.setattr(auto_rate, "HIGHEST", 1.0)
    first = train(settings(tmp_path, *more), [stop])
    assert first.stopped
    assert read_progress(steps_of(tmp_path / "run")[-1]).learning_rate == whole.learning_rate
    monkeypatch.setattr(auto_rate, "HIGHEST", 1e-6)
    capsys.readouterr()
    resumed = train(settings(tmp_path, *more, f"sft.resume_from={tmp_path / 'run'}"))
    assert "(auto: as when the run began)" in capsys.readouterr().out
    assert resumed.learning_rate == whole.learning_rate
    assert resumed.val_losses == whole.val_losses
    assert config.sft.learning_rate == "auto"


# The number of steps


def test_auto_is_three_epochs_with_chats_and_ten_thousand_steps_with_stories():
    source = CountingDataset(40)
    job = SimpleNamespace(phase=with_auto_steps(SFTSection(), of_chats=False), source=source)
    assert count_steps(job, 4, None) == 10_000
    job.phase = with_auto_steps(SFTSection(), of_chats=True)
    assert count_steps(job, 4, None) == 30
    job.phase = with_auto_steps(SFTSection(epochs=1), of_chats=True)
    assert count_steps(job, 4, None) == 10
    job.phase = with_auto_steps(SFTSection(max_steps=7), of_chats=True)
    assert count_steps(job, 4, None) == 7
    job.phase = PretrainSection(max_steps="auto")
    assert count_steps(job, 4, None) == 10_000


def test_null_is_an_error_without_epochs_also_on_chats(tmp_path):
    with pytest.raises(UserError, match=r"sft: set max_steps or epochs; both are null\."):
        train(settings(tmp_path, "sft.max_steps=null"))


def test_a_mix_of_chats_and_stories_counts_as_chats(tmp_path, capsys):
    write_records(tmp_path / "stories")
    result = train(
        settings(tmp_path, "chats.stories=0.5", f"sft.dataset_path={tmp_path / 'stories'}", "sft.eval_tasks=0")
    )
    assert result.steps == 54
    assert "3 epochs of the chats (auto)" in capsys.readouterr().out


@pytest.mark.parametrize(("total", "expected"), [(1, 0), (40, 4), (600, 60), (5_000, 500), (10_000, 500)])
def test_warmup_is_a_tenth_of_the_steps_and_at_most_500(total, expected):
    assert warmup_length("auto", total) == expected
    assert warmup_length(7, total) == 7


# The warning


def make_trainer(folder, learning_rate, total=60, stages=(), **changes):
    tokenizer = chat_tokenizer()
    config = tiny_config(
        sft={"max_steps": total, "learning_rate": learning_rate, "eval_interval": 100, "save_interval": 5, "warmup_steps": 2},
        training={"batch_size": 4, "keep_checkpoints": 20},
        **changes,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    job = Job("sft", config.sft, CountingDataset(), [], stages=stages)
    out = io.StringIO()
    model = trained(tiny_model(tokenizer.vocab_size))
    engine = TrainStep(model, config, job.phase, pick_precision("fp32", torch.device("cpu")))
    monitor = Monitor(folder, config.wandb, {}, Console(file=out, width=500))
    return Trainer(job, engine, tokenizer, config, folder, monitor), out


@pytest.mark.parametrize(
    ("rate", "warned", "advice"),
    [
        (1e-9, True, "A higher rate may help"),
        (1e-2, False, ""),
        (10.0, True, "A lower rate may help"),
        ("auto", False, ""),
    ],
)
def test_a_run_whose_loss_does_not_fall_at_the_beginning_says_so_once(tmp_path, rate, warned, advice):
    trainer, out = make_trainer(tmp_path / "run", rate)
    trainer.run()
    assert out.getvalue().count("Warning: the loss does not fall.") == warned
    assert advice in out.getvalue()
    if warned:
        assert f"after 20 of 60 steps with a learning rate of up to {rate:g}" in out.getvalue()


def test_the_comparison_changes_nothing(tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path / "run", 1e-2)
    trainer.run()
    monkeypatch.setattr("mini_chat_gpt.training.trainer.early_loss_warning", lambda *_: "")
    without, _ = make_trainer(tmp_path / "without", 1e-2)
    without.run()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, without.model.get_parameter(name)), name


def test_a_resumed_run_compares_with_the_loss_of_its_first_step(tmp_path):
    trainer, _ = make_trainer(tmp_path / "run", 1e-9)
    trainer.run()
    first = read_progress(steps_of(tmp_path / "run")[0])
    assert first.step == 5
    assert first.first_loss == trainer.progress.first_loss
    again, out = make_trainer(tmp_path / "again", 1e-9)
    again.resume(again.engine.restore(steps_of(tmp_path / "run")[0]))
    again.run()
    assert f"examples was {first.first_loss:.4f}" in out.getvalue()


def test_in_a_curriculum_the_first_stage_is_compared(tmp_path):
    class Easy(CountingDataset):
        def __getitem__(self, index):
            return replace(super().__getitem__(index + 500), kind="easy")

    trainer, out = make_trainer(tmp_path / "run", 1e-9, stages=[Stage(0.5, Easy(), tokens_per_step=30)])
    taken = []
    compute = trainer.engine.loss
    trainer.engine.loss = lambda examples: taken.append(examples) or compute(examples)
    trainer.run()
    assert {example.kind for example in taken[0]} == {"easy"}
    assert "Warning" in out.getvalue()


@pytest.mark.parametrize(("total", "step"), [(10, None), (20, None), (21, 20), (400, 20), (401, 21), (10_000, 500)])
def test_the_losses_are_compared_after_a_twentieth_but_not_before_step_20(total, step):
    assert compared_after(total) == step


def test_a_step_in_tokens_takes_half_an_example_more_than_fits():
    """It takes examples until its tokens are exceeded."""

    class Even(CountingDataset):
        def __getitem__(self, index):
            return replace(example := super().__getitem__(0), ids=example.ids[:10])

    job = SimpleNamespace(phase=with_auto_steps(SFTSection(epochs=7), of_chats=True), source=Even(100))
    assert count_steps(job, 4, 30) == 700 / 3.5
