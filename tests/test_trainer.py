"""One step is a true token mean; a resumed run equals an unbroken one; what is logged is what happened."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny import CountingSource, tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt.checkpoint import find_checkpoint, load_model, steps_of, validation_loss
from mini_chat_gpt.config import SFTSection
from mini_chat_gpt.device import pick_precision
from mini_chat_gpt.monitor import Monitor, keep_metrics_until
from mini_chat_gpt.trainer import Job, Stage, Trainer, examples_from, step_examples

TOKENIZER = tiny_tokenizer()


def make_trainer(folder, callbacks=(), tokenizer=TOKENIZER, validation=4, stages=(), **sections) -> Trainer:
    sft = {"max_steps": 12, "eval_interval": 4, "save_interval": 3, "learning_rate": 1e-2, "warmup_steps": 2}
    config = tiny_config(**{"sft": sft, "training": {"batch_size": 4, "keep_checkpoints": 20}} | sections)
    folder.mkdir(exist_ok=True)
    source = CountingSource()
    job = Job("sft", config.sft, source, [source.example(i + 1000) for i in range(validation)], stages=stages)
    model = tiny_model(tokenizer.vocab_size)
    monitor = Monitor(folder, config.wandb, {}, Console(quiet=True))
    precision = pick_precision(False, torch.device("cpu"))
    return Trainer(job, model, tokenizer, config, folder, monitor, precision, False, callbacks)


def gradients_of(trainer: Trainer, examples) -> dict[str, torch.Tensor]:
    captured = {}

    def capture(_fraction, _weight_decay):
        captured.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

    trainer.optimizer.step = capture
    captured["loss"] = torch.tensor(trainer.training_step(examples)[0])
    return captured


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_size_of_a_micro_batch_changes_neither_loss_nor_gradient(tmp_path, optimizer):
    examples = [CountingSource().example(i) for i in range(8)]
    results = []
    for size in (8, 3, 1):
        training = {"batch_size": size, "examples_per_step": 8, "optimizer": optimizer, "grad_clip": 0.0}
        results.append(gradients_of(make_trainer(tmp_path / str(size), training=training), examples))
    for other in results[1:]:
        for name, gradient in results[0].items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-7)


def test_the_loss_is_the_weighted_mean_over_tokens_computed_plainly(tmp_path):
    trainer = make_trainer(tmp_path / "run", training={"batch_size": 3, "examples_per_step": 8})
    examples = [CountingSource().example(i) for i in range(8)]
    top = bottom = 0.0
    for example in examples:
        ids = torch.from_numpy(example.ids).long()
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(trainer.model(ids[None])[0, :-1], ids[1:], reduction="none")
        trained = torch.from_numpy(example.trained[1:])
        top += example.weight * losses[trained].sum().item()
        bottom += example.weight * int(trained.sum())
    loss, weight, _ = trainer.training_step(examples)
    assert weight == pytest.approx(bottom)
    assert loss == pytest.approx(top / bottom, rel=1e-5)


def test_validation_counts_every_example_once_and_splits_by_kind(tmp_path):
    trainer = make_trainer(tmp_path / "run", validation=37)
    losses = trainer.validate()
    sums = {"a": [0.0, 0], "b": [0.0, 0]}
    for example in trainer.job.validation:
        ids = torch.from_numpy(example.ids).long()
        with torch.no_grad():
            each = torch.nn.functional.cross_entropy(trainer.model(ids[None])[0, :-1], ids[1:], reduction="none")
        trained = torch.from_numpy(example.trained[1:])
        sums[example.kind][0] += each[trained].sum().item()
        sums[example.kind][1] += int(trained.sum())
    for kind, (total, count) in sums.items():
        assert losses[f"val_loss/{kind}"] == pytest.approx(total / count, rel=1e-5)
    overall = sum(s for s, _ in sums.values()) / sum(c for _, c in sums.values())
    assert losses["val_loss"] == pytest.approx(overall, rel=1e-5)


@pytest.mark.parametrize(
    "sections", [{}, {"training": {"optimizer": "muon", "tokens_per_step": 60, "keep_checkpoints": 9}}]
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, sections):
    whole = make_trainer(tmp_path / "whole", **sections)
    whole.run()
    make_trainer(tmp_path / "broken", **sections).run()
    checkpoint = tmp_path / "broken" / "step-0000006"
    for later in steps_of(tmp_path / "broken"):
        if later > checkpoint:
            later.rename(tmp_path / f"gone-{later.name}")
    again = make_trainer(tmp_path / "broken", **sections)
    again.model.load_state_dict(load_model(checkpoint).state_dict())
    again.resume(checkpoint)
    again.run()
    assert again.progress.cursor == whole.progress.cursor
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


class OneLetterSource(CountingSource):
    """Examples that can be told from the others by their kind."""

    def example(self, slot):
        return replace(super().example(slot), kind="easy")


@pytest.mark.parametrize("workers", [0, 1])
def test_stages_come_first_with_their_own_examples_and_step_size(tmp_path, workers):
    stages = [Stage(0.25, OneLetterSource(), tokens_per_step=30), Stage(1 / 6, OneLetterSource(), weight_decay=0.3)]
    trainer = make_trainer(tmp_path / "run", stages=stages, data={"num_workers": workers})
    taken, step = [], trainer.training_step
    decays, update = [], trainer.optimizer.step
    trainer.training_step = lambda examples: taken.append(examples) or step(examples)
    trainer.optimizer.step = lambda fraction, decay: decays.append(decay) or update(fraction, decay)
    trainer.run()
    assert [{example.kind for example in examples} == {"easy"} for examples in taken] == [True] * 5 + [False] * 7
    assert all(sum(len(example.ids) for example in examples) >= 30 for examples in taken[:3])
    assert all(len(examples) == 4 for examples in taken[3:])
    assert decays == [None] * 3 + [0.3] * 2 + [None] * 7
    assert trainer.progress.cursor == sum(map(len, taken))  # no example slot is used twice or left out


def test_a_run_stopped_between_stages_goes_on_where_it_was(tmp_path):
    stages = [Stage(0.4, OneLetterSource(), tokens_per_step=30)]
    whole = make_trainer(tmp_path / "whole", stages=stages)
    whole.run()
    for step in (3, 6):  # within the stage, and after it
        again = make_trainer(tmp_path / f"again-{step}", stages=stages)
        checkpoint = tmp_path / "whole" / f"step-{step:07d}"
        again.model.load_state_dict(load_model(checkpoint).state_dict())
        again.resume(checkpoint)
        again.run()
        assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_metrics_hold_what_was_optimised_and_no_line_twice_after_a_resume(tmp_path):
    folder = tmp_path / "run"
    make_trainer(folder).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "sft/train_loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "sft/val_loss" in line] == [4, 8, 12]
    assert {"sft/lr", "sft/tokens_per_second", "sft/grad_norm"} <= set(lines[0])
    keep_metrics_until(folder, 6)
    assert max(json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()) == 6


def test_the_best_and_the_newest_checkpoints_stay(tmp_path):
    folder = tmp_path / "run"
    losses = iter([3.0, 1.0, 2.0])
    trainer = make_trainer(folder, training={"keep_checkpoints": 1})
    trainer.validate = lambda: {"val_loss": next(losses)}
    trainer.run()
    assert [step.name for step in steps_of(folder)] == ["step-0000008", "step-0000012"]
    assert find_checkpoint(folder).name == "step-0000008"
    assert find_checkpoint(folder / "last").name == "step-0000012"
    assert validation_loss(folder / "step-0000008") == 1.0


def test_an_interrupt_saves_the_step_it_stopped_at(tmp_path):
    def interrupt(_trainer, step, _metrics):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    result = make_trainer(tmp_path / "run", callbacks=[interrupt]).run()
    assert result.interrupted
    assert steps_of(tmp_path / "run")[-1].name == f"step-{result.steps:07d}"
    assert result.steps in (5, 6)


def test_worker_processes_give_the_same_examples_in_the_same_order():
    source = CountingSource()
    inline, workers = (examples_from(source, 7, workers=n) for n in (0, 2))
    for _ in range(100):
        assert next(inline).ids.tolist() == next(workers).ids.tolist()


def test_a_step_in_tokens_takes_examples_until_its_budget_is_reached():
    stream = examples_from(CountingSource(), 0, 0)
    taken = step_examples(stream, 4, tokens=100)
    lengths = [len(example.ids) for example in taken]
    assert sum(lengths) >= 100 > sum(lengths[:-1])


def test_a_small_model_learns_what_it_is_shown(tmp_path):
    config = SFTSection(max_steps=150, learning_rate=1e-2, warmup_steps=5, eval_interval=150, save_interval=150)
    trainer = make_trainer(
        tmp_path / "run", sft=config.model_dump(), training={"examples_per_step": 16, "batch_size": 16}
    )
    before = trainer.validate()["val_loss"]
    result = trainer.run()
    assert before > 5
    assert result.val_losses["val_loss"] < 0.5
