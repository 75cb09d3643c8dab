"""The contestants of training_step.py, each in a process of its own: `python step_contestants.py NAME SETTING FOLDER`.

A contestant takes a first step, says "ready", and then waits: for every line on stdin it goes on for a turn of some seconds
and reports its steps, so that the parent can let all of them alternate on a machine whose speed changes from minute to
minute. Clocks start right after `import torch`.
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


class Referee:
    """Takes the time of steps and lets the parent say when to go on."""

    def __init__(self) -> None:
        # What libraries print is nobody's message.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._steps: list[dict[str, Any]] = []
        self._turn_ends = 0.0
        self._step_began = 0.0
        self._first = True

    def begin(self) -> None:
        """Before a step. When the turn is over, reports it and waits for the next one."""
        now = time.perf_counter()
        if not self._first and now >= self._turn_ends:
            self._send({"steps": self._steps})
            now = self._wait()
        self._step_began = now

    def end(self, **measured: Any) -> None:
        """After a step of so many `tokens` (real ones) and `trained` among them."""
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
        """Step after step, for contestants whose loop is ours to write."""
        for items in batches(setting):
            self.begin()
            step(items)
            self.end(tokens=n_tokens(items), trained=n_trained(items))


def peak_bytes() -> int:
    """The most resident memory this process ever had (0 where /proc is missing)."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def forget_peak() -> None:
    """Let the most resident memory be counted from now on: reading a model may take more than training it."""
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
    """The engine of a run with the settings file's defaults but for what the setting says; of an adapter with `frozen`."""
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
    chosen = pick_precision(config.system.mixed_precision, model.device)
    return TrainStep(model, config, config.sft, chosen, world or ALONE)


def our_examples(items: list[Item]) -> list[Example]:
    from mini_chat_gpt.data.batching import Example

    return [Example(item.ids.astype("int32"), item.trained, 1.0, "any") for item in items]


def ours(setting: Setting, folder: str, referee: Referee, precision: str, frozen: Frozen | None = None) -> None:
    """`TrainStep.step`, which is what the trainer calls."""
    engine = our_engine(setting, folder, precision, frozen=frozen)
    forget_peak()
    referee.run(setting, lambda items: engine.step(our_examples(items)))


def padded(items: list[Item], longest: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels (B, T), filled up on the right; labels[:, t] is what position t predicts, or -100."""
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
    """The checkpoint as `transformers` runs it: somebody else's code, with derivatives by autograd alone."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def plain_loss(model: torch.nn.Module, items: list[Item]) -> torch.Tensor:
    """The mean loss of the trained tokens, by way of a padded batch and the logits of every position."""
    ids, labels = padded(items)
    logits = model(
        input_ids=ids, use_cache=False
    ).logits  # what fills up stands on the right, where no real token looks
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def plain(setting: Setting, folder: str, referee: Referee) -> None:
    """The loop that everybody writes first: padded, float32, all logits, AdamW as PyTorch gives it."""
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

    referee.run(setting, step)


def peft(setting: Setting, folder: str, referee: Referee) -> None:
    """PEFT's LoRA with the settings of ours, on the checkpoint as `transformers` runs it in bf16, padded, all logits."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    torch.set_num_threads(setting.threads)
    logging.disable_progress_bar()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).train()
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    forget_peak()

    def step(items: list[Item]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = plain_loss(model, items)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    referee.run(setting, step)


def trl(setting: Setting, folder: str, referee: Referee, **options: Any) -> None:
    """TRL's SFTTrainer on the same checkpoint, with examples already tokenised and labelled."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(setting.threads)
    items = [item for number in range(STEPS_AT_MOST) for item in batch(setting, number)]
    labels = [[int(t) if on else -100 for t, on in zip(item.ids, item.trained, strict=True)] for item in items]
    data = Dataset.from_dict({"input_ids": [item.ids.tolist() for item in items], "labels": labels})
    seen: list[dict[str, int]] = []  # one entry for each batch, in the order in which they were laid out

    class Timed(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            referee.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            referee.end(**seen[state.global_step - 1])

    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=STEPS_AT_MOST,
        learning_rate=setting.learning_rate,
        weight_decay=0.01,
        adam_beta2=0.95,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **{"per_device_train_batch_size": setting.batch_size, "train_sampling_strategy": "sequential"} | options,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(
        model=folder, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[Timed()]
    )
    collate = trainer.data_collator

    def counting(examples: Any) -> Any:
        made = collate(examples)
        tokens = sum(len(example["input_ids"]) for example in examples)
        seen.append({"tokens": tokens, "trained": int((made["labels"][..., 1:] != -100).sum())})
        return made

    trainer.data_collator = counting
    trainer.train()


STEPS_AT_MOST = 300  # examples laid ready for TRL; more than a run takes


def nanochat(setting: Setting, checkout: str, referee: Referee, compiled: bool) -> None:
    """nanochat's model of the same shape in its way of fine-tuning: padded batches, masked targets, all logits, bf16.

    Its tables are untied, its MLP is 4 C wide without a gate (as many weights as ours), queries and keys are normalised, the
    embedding is bf16. AdamW for all of it, which on a CPU is faster than its own Muon.
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
    width = setting.longest if compiled else None  # one shape, so that it is compiled once

    def step(items: list[Item]) -> None:
        ids, labels = padded(items, width)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net(ids, labels.where(labels >= 0, torch.tensor(-1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    referee.run(setting, step)


def matrix_peak(setting: Setting, referee: Referee) -> None:
    """Matrix products as this model has them, and a large one: the fastest of them is what the machine can do."""
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
        referee.begin()
        referee.end(**{str(dtype).removeprefix("torch."): [rate(a, b) for a, b in of] for dtype, of in pairs.items()})


def rate(a: torch.Tensor, b: torch.Tensor) -> float:
    """Floating point operations a second of a @ b, the best of some."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize(a.device)
        best = min(best, time.perf_counter() - began)
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] / best


def main() -> None:
    name, given, folder, checkout = sys.argv[1:]
    setting = Setting(**json.loads(given))
    referee = Referee()
    no_checkpointing = {"gradient_checkpointing": False}
    packed = {"packing": True, "max_length": 1024, "per_device_train_batch_size": max(1, setting.batch_size // 4)}
    contestants: dict[str, Callable[[], None]] = {
        "ours-lora": lambda: ours(setting, folder, referee, "auto", "bf16"),
        "ours-lora-float32": lambda: ours(setting, folder, referee, "fp32", "float32"),
        "ours-qlora": lambda: ours(setting, folder, referee, "auto", "nf4"),
        "peft": lambda: peft(setting, folder, referee),
        "ours": lambda: ours(setting, folder, referee, "auto"),
        "ours-float32": lambda: ours(setting, folder, referee, "fp32"),
        "plain": lambda: plain(setting, folder, referee),
        "trl": lambda: trl(setting, folder, referee),
        "trl-fast": lambda: trl(setting, folder, referee, **no_checkpointing),
        "trl-packed": lambda: trl(setting, folder, referee, **no_checkpointing | packed),
        "nanochat": lambda: nanochat(setting, checkout, referee, compiled=False),
        "nanochat-compiled": lambda: nanochat(setting, checkout, referee, compiled=True),
        "peak": lambda: matrix_peak(setting, referee),
    }
    contestants[name.removesuffix("-kept")]()


def missing(name: str, checkout: str | None) -> str | None:
    """Why a contestant can't take part here, or None."""
    needed = {"trl": "trl", "plain": "transformers", "peft": "peft"}.get(name.partition("-")[0])
    if needed and importlib.util.find_spec(needed) is None:
        return f"{needed} is not installed here (pip install {needed})"
    if name.startswith("nanochat") and checkout is None:
        return "it is in no package index; give --nanochat FOLDER_OF_A_CHECKOUT"
    return None


if __name__ == "__main__":
    main()
