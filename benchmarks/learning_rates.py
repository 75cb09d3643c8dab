"""The learning rate that `sft.learning_rate=auto` chooses, compared with rates above and below it.

    python benchmarks/learning_rates.py --out /tmp/rates sft.pretrained_checkpoint=runs/base sft.dataset_path=data [lora.enabled=true]

Five runs of 200 steps, with the same examples in the same order, at the automatic rate times 1/9, 1/3, 1, 3 and 9. For each:
the validation loss at the end as a ratio to the best one, and how far the loss of the first step's examples has fallen when
training warns if it has not (training/early_loss.py). Runs that are in the folder already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from mini_chat_gpt import train
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.training.early_loss import compared_after
from mini_chat_gpt.training.job import Metrics
from mini_chat_gpt.training.trainer import Trainer

FACTORS = (1, 1 / 3, 3, 1 / 9, 9)


def run(settings: Sequence[str], folder: Path) -> dict[str, float]:
    """One run: its rate, validation loss, and the loss of the first step's examples before it and at the comparison."""
    result_file = folder / "rate.json"
    if result_file.exists():
        return dict(json.loads(result_file.read_text()))
    config = load_config(None, [*settings, f"sft.save_dir={folder}"])
    found: dict[str, float] = {}

    def watch(trainer: Trainer, step: int, _: Metrics) -> None:
        if step == compared_after(trainer.total_steps) and "then" not in found:
            found["first"] = trainer.progress.first_loss or math.nan
            found["then"] = trainer.engine.loss(trainer._first_examples())

    result = train(config, [watch])
    found |= {"rate": result.learning_rate, "loss": result.val_losses["val_loss"], "seconds": result.seconds}
    result_file.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--factors", type=float, nargs="*", default=FACTORS)
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    common = ["sft.max_steps=200", "sft.eval_interval=200", "sft.save_interval=200", "data.eval_examples=100"]
    common += ["sft.eval_tasks=0", "wandb.enabled=false", "training.keep_checkpoints=1", *arguments.settings]
    runs = {1.0: run(common, arguments.out / "auto")}
    for factor in arguments.factors:
        if factor != 1:
            rate = runs[1.0]["rate"] * factor
            runs[factor] = run([*common, f"sft.learning_rate={rate}"], arguments.out / f"{factor:.2g}")
    best = min(one["loss"] for one in runs.values())
    print(f"{'rate':>9} {'validation loss':>16} {'ratio to best':>14} {'early change':>13} {'seconds':>8}")
    for factor, one in sorted(runs.items()):
        change = one["then"] / one["first"] - 1
        mark = "  auto" if factor == 1 else ""
        print(
            f"{one['rate']:9.1e} {one['loss']:16.4f} {one['loss'] / best:14.3f} {change:+13.1%} {one['seconds']:8.0f}{mark}"
        )


if __name__ == "__main__":
    main()
