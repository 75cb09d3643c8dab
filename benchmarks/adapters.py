"""Time and memory of training all weights, an adapter (LoRA), and one beside a base in 4 bits (QLoRA): the same model and examples.

    python benchmarks/adapters.py                     12 layers, 768 wide: 88 M parameters, of which 85 M are in layers
    python benchmarks/adapters.py --n-layer 8 --n-embd 384 --only ours ours-lora

Each in a process of its own, all by turns (step_race.py). Memory is the most that is resident once the model is there; a
process that trains nothing is given for comparison. The peer is PEFT (pip install peft) with the same adapter on the same
checkpoint, run by `transformers` in bf16.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from step_contestants import missing
from step_race import Child, race
from step_setting import Setting, write_checkpoint

CONTESTANTS = {
    "ours": "all weights, bf16 products",
    "ours-lora": "LoRA, base in bf16",
    "ours-qlora": "QLoRA, base in NF4",
    "peft-kept": "PEFT's LoRA, base in bf16",
    "ours-lora-float32": "LoRA, all in float32",
}
IDLE = "import mini_chat_gpt.training.run, step_contestants; print(step_contestants.peak_bytes())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--n-layer", type=int, default=12)
    parser.add_argument("--n-embd", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--trained", type=float, default=0.4, help="share of an example's tokens")
    parser.add_argument("--batch-size", type=int, default=4, help="examples of a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--turn", type=float, default=6.0, help="seconds of a contestant's turn")
    args = parser.parse_args()
    setting = Setting(
        vocab_size=args.vocab,
        trained=args.trained,
        n_layer=args.n_layer,
        n_embd=args.n_embd,
        n_head=args.n_embd // 64,
        batch_size=args.batch_size,
        threads=args.threads,
    )
    in_layers = setting.n_layer * (4 * setting.n_embd**2 + 3 * setting.n_embd * setting.mlp_size)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(setting, Path(folder) / "model")
        children = []
        for name in args.only:
            if reason := missing(name, None):
                print(f"{name}: left out, {reason}")
                continue
            children.append(Child(name, setting, checkpoint, None))
        race(children, args.rounds, args.turn)
        idle = int(subprocess.check_output([sys.executable, "-c", IDLE], cwd=Path(__file__).parent))
        print(f"{in_layers / 1e6:.1f} M parameters in linear layers; an idle process: {idle / 2**20:.0f} MiB")
        print(f"{'':28}  tokens/s     of full  peak MiB  less than full")
        first: tuple[float, int] | None = None
        for child in children:
            rate = statistics.median(step["tokens"] / step["seconds"] for step in child.steps)
            peak = child.quit()
            first = first or (rate, peak)
            less = (first[1] - peak) / 2**20
            print(
                f"{CONTESTANTS[child.name]:28} {rate:9,.0f}  {rate / first[0]:9.2f}  {peak / 2**20:8,.0f}  {less:14,.0f}"
            )
        print(f"4 bits instead of 16 save {in_layers * (16 - 4.127) / 8 / 2**20:,.0f} MiB of weights.")


if __name__ == "__main__":
    main()
