"""The implementations of training_step.py, each in its own process: `python step_implementations.py NAME SETTING FOLDER`.

An implementation runs a first step, sends "ready", and then waits. For every line on stdin it runs steps for some seconds and
reports them, so that the parent can interleave all implementations on a machine whose speed changes from minute to minute.
Time is measured from the end of `import torch`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

STARTED = time.perf_counter()

from step_setting import Item, Setting, batch, batches, n_tokens, n_trained  # noqa: E402

if TYPE_CHECKING:
    from mini_chat_gpt.common.distributed import World
    from mini_chat_gpt.data.batching import Example
    from mini_chat_gpt.lora import Frozen
    from mini_chat_gpt.training.train_step import TrainStep

Step = Callable[[list[Item]], object]


class StepTimer:
    """Measures the time of steps, and waits for the parent before each turn."""

    def __init__(self) -> None:
        # Output of libraries goes to stderr, so that stdout has our messages only.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._steps: list[dict[str, Any]] = []
        self._turn_ends = 0.0
        self._step_began = 0.0
        self._first = True

    def begin(self) -> None:
        """Call before a step. At the end of a turn, report its steps and wait for the next turn."""
        now = time.perf_counter()
        if not self._first and now >= self._turn_ends:
            self._send({"steps": self._steps})
            now = self._wait()
        self._step_began = now

    def end(self, **measured: Any) -> None:
        """Call after a step; `measured` has its tokens without padding, and the supervised ones among them."""
        now = time.perf_counter()
        if self._first:
            self._first = False
            self._send({"ready": now - STARTED, "threads": torch.get_num_threads(), **measured})
            self._wait()
        else:
            self._steps.append({"seconds": now - self._step_began, **measured})

    def _wait(self) -> float:
        line = sys.stdin.readline().split()
        if not line or line[0] == "quit":
            self._send({"peak_bytes": peak_bytes()})
            os._exit(0)
        self._steps = []
        now = time.perf_counter()
        self._turn_ends = now + float(line[0])
        return now

    def _send(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def run(self, setting: Setting, step: Step) -> None:
        """The training loop of the implementations that don't have their own."""
        for items in batches(setting):
            self.begin()
            step(items)
            self.end(tokens=n_tokens(items), trained=n_trained(items))


def peak_bytes() -> int:
    """Peak resident memory of this process (0 without /proc)."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def reset_peak() -> None:
    """Reset peak resident memory, because loading a model may take more memory than training it."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def our_engine(
    setting: Setting,
    folder: Path | str,
    precision: str,
    clip: float = 1.0,
    world: World | None = None,
    frozen: Frozen | None = None,
) -> TrainStep:
    """The train step of a run with default settings, except for those in `setting`. `frozen` adds an adapter."""
    from mini_chat_gpt.checkpoints.load import load_checkpoint
    from mini_chat_gpt.common.device import pick_precision, set_up
    from mini_chat_gpt.common.distributed import ALONE
    from mini_chat_gpt.config import Config
    from mini_chat_gpt.training.train_step import TrainStep

    config = Config.model_validate(
        {
            "training": {"batch_size": setting.batch_size, "grad_clip": clip},
            "sft": {"learning_rate": setting.learning_rate},
            "system": {"threads": setting.threads, "mixed_precision": precision},
        }
    )
    set_up(config.system.seed, config.system.threads)
    model, _ = load_checkpoint(folder, "cpu")
    if frozen is not None:
        from mini_chat_gpt.lora import add_lora

        add_lora(model, config.lora, frozen)
    chosen_precision = pick_precision(config.system.mixed_precision, model.device)
    return TrainStep(model, config, config.sft, chosen_precision, world or ALONE)


def our_examples(items: list[Item]) -> list[Example]:
    from mini_chat_gpt.data.batching import Example

    return [Example(item.ids.astype("int32"), item.trained, 1.0, "any") for item in items]


def ours(setting: Setting, folder: str, timer: StepTimer, precision: str, frozen: Frozen | None = None) -> None:
    """`TrainStep.step`, as the trainer calls it."""
    engine = our_engine(setting, folder, precision, frozen=frozen)
    reset_peak()
    timer.run(setting, lambda items: engine.train_step(our_examples(items)))


def padded(items: list[Item], longest: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels (B, T), padded on the right; labels[:, t] is the token that position t predicts, or -100."""
    longest = longest or max(len(item.ids) for item in items)
    ids = torch.zeros(len(items), longest, dtype=torch.int64)
    labels = torch.full((len(items), longest), -100)
    for row, item in enumerate(items):
        n = len(item.ids)
        ids[row, :n] = torch.from_numpy(item.ids)
        following = torch.from_numpy(item.ids[1:])
        labels[row, : n - 1] = following.where(torch.from_numpy(item.trained[1:]), torch.tensor(-100))
    return ids, labels


def plain_model(folder: str | Path) -> torch.nn.Module:
    """The checkpoint loaded by `transformers`: independent code that uses only autograd."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def plain_loss(model: torch.nn.Module, items: list[Item]) -> torch.Tensor:
    """The mean loss of the supervised tokens, from a padded batch and the logits of every position."""
    ids, labels = padded(items)
    logits = model(input_ids=ids, use_cache=False).logits  # padding is on the right, where no real token attends
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def plain(setting: Setting, folder: str, timer: StepTimer) -> None:
    """A plain loop: padded batches, float32, all logits, PyTorch's AdamW."""
    torch.set_num_threads(setting.threads)
    model = plain_model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)

    def step(items: list[Item]) -> None:
        loss = plain_loss(model, items)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    timer.run(setting, step)


def peft(setting: Setting, folder: str, timer: StepTimer) -> None:
    """PEFT's LoRA with our settings, on the checkpoint in `transformers` in bf16: padded batches, all logits."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    torch.set_num_threads(setting.threads)
    logging.disable_progress_bar()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).train()
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    reset_peak()

    def step(items: list[Item]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = plain_loss(model, items)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    timer.run(setting, step)


def trl(setting: Setting, folder: str, timer: StepTimer, n_steps: int = 300, **options: Any) -> None:
    """TRL's SFTTrainer on the same checkpoint, with tokenized and labeled examples for `n_steps`, more than a run takes."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(setting.threads)
    items = [item for number in range(n_steps) for item in batch(setting, number)]
    labels = [[int(t) if on else -100 for t, on in zip(item.ids, item.trained, strict=True)] for item in items]
    data = Dataset.from_dict({"input_ids": [item.ids.tolist() for item in items], "labels": labels})
    seen: list[dict[str, int]] = []  # one entry for each collated batch, in order

    class Timed(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            timer.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            timer.end(**seen[state.global_step - 1])

    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=n_steps,
        learning_rate=setting.learning_rate,
        weight_decay=0.01,
        adam_beta2=0.95,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **{"per_device_train_batch_size": setting.batch_size, "train_sampling_strategy": "sequential", "use_cpu": True}
        | options,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(
        model=folder, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[Timed()]
    )
    collate = trainer.data_collator

    def counting(examples: Any) -> Any:
        collated = collate(examples)
        tokens = sum(len(example["input_ids"]) for example in examples)
        seen.append({"tokens": tokens, "trained": int((collated["labels"][..., 1:] != -100).sum())})
        return collated

    trainer.data_collator = counting
    trainer.train()


def nanochat(setting: Setting, checkout: str, timer: StepTimer, compiled: bool) -> None:
    """nanochat's model of the same size, fine-tuned as nanochat does: padded batches, masked targets, all logits, bf16.

    Its embedding and head are untied, its MLP is 4 C wide without a gate (as many weights as ours), queries and keys are
    normalized, and the embedding is bf16. All weights use AdamW, which is faster than nanochat's Muon on a CPU.
    """
    sys.path.insert(0, checkout)
    from nanochat.gpt import GPT, GPTConfig

    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    shape = {name: getattr(setting, name) for name in ("n_layer", "n_head", "n_embd")}
    fields = {"sequence_len": setting.context_length, "vocab_size": setting.table, "n_kv_head": setting.n_head} | shape
    if "window_pattern" in GPTConfig.__dataclass_fields__:
        fields["window_pattern"] = "L"
    model = GPT(GPTConfig(**fields))
    model.init_weights()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, betas=(0.9, 0.95), fused=True)
    net = torch.compile(model, dynamic=False) if compiled else model
    width = setting.longest if compiled else None  # one shape, so that the model is compiled once

    def step(items: list[Item]) -> None:
        ids, labels = padded(items, width)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net(ids, labels.where(labels >= 0, torch.tensor(-1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    timer.run(setting, step)


def matrix_peak(setting: Setting, timer: StepTimer) -> None:
    """Matrix products of this model's shapes and two large ones. The fastest of them is the peak of the machine."""
    torch.set_num_threads(setting.threads)
    tokens, width, hidden = 2048, setting.n_embd, setting.mlp_size
    shapes = [
        (tokens, width, width),
        (tokens, width, hidden),
        (tokens, hidden, width),
        (256, width, setting.table),
        (1024, 1024, 1024),
        (2048, 2048, 2048),
    ]
    pairs = {
        dtype: [(torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype).t()) for m, k, n in shapes]
        for dtype in (torch.float32, torch.bfloat16)
    }
    while True:
        timer.begin()
        timer.end(
            **{
                str(dtype).removeprefix("torch."): [rate(a, b) for a, b in operands]
                for dtype, operands in pairs.items()
            }
        )


def rate(a: torch.Tensor, b: torch.Tensor) -> float:
    """FLOP/s of a @ b, the best of five."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize(a.device)
        best = min(best, time.perf_counter() - began)
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] / best


def main() -> None:
    name, setting_json, folder, checkout = sys.argv[1:]
    setting = Setting(**json.loads(setting_json))
    timer = StepTimer()
    no_checkpointing = {"gradient_checkpointing": False}
    packed = {"packing": True, "max_length": 1024, "per_device_train_batch_size": max(1, setting.batch_size // 4)}
    implementations: dict[str, Callable[[], None]] = {
        "ours-lora": lambda: ours(setting, folder, timer, "auto", "bf16"),
        "ours-lora-float32": lambda: ours(setting, folder, timer, "fp32", "float32"),
        "ours-qlora": lambda: ours(setting, folder, timer, "auto", "nf4"),
        "peft": lambda: peft(setting, folder, timer),
        "ours": lambda: ours(setting, folder, timer, "auto"),
        "ours-float32": lambda: ours(setting, folder, timer, "fp32"),
        "plain": lambda: plain(setting, folder, timer),
        "trl": lambda: trl(setting, folder, timer),
        "trl-fast": lambda: trl(setting, folder, timer, **no_checkpointing),
        "trl-packed": lambda: trl(setting, folder, timer, **no_checkpointing | packed),
        "nanochat": lambda: nanochat(setting, checkout, timer, compiled=False),
        "nanochat-compiled": lambda: nanochat(setting, checkout, timer, compiled=True),
        "peak": lambda: matrix_peak(setting, timer),
    }
    implementations[name.removesuffix("-kept")]()


def missing(name: str, checkout: str | None) -> str | None:
    """Why an implementation can't run here, or None."""
    needed = {"trl": "trl", "plain": "transformers", "peft": "peft"}.get(name.partition("-")[0])
    if needed and importlib.util.find_spec(needed) is None:
        return f"{needed} is not installed here (pip install {needed})"
    if name.startswith("nanochat") and checkout is None:
        return "it is not on PyPI; give --nanochat FOLDER_OF_A_CHECKOUT"
    return None


if __name__ == "__main__":
    main()
