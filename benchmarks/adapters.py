"""Time and memory of training all weights, a LoRA adapter, and an adapter on a 4-bit base (QLoRA), with the same model and examples.

    python benchmarks/adapters.py                     12 layers, 768 wide: 88 M parameters, 85 M of them in linear layers
    python benchmarks/adapters.py --n-layer 8 --n-embd 384 --only ours ours-lora

Each implementation runs in its own process, and all are interleaved (step_runner.py). Memory is peak resident memory after
the model is loaded; a process that trains nothing is printed for comparison. The baseline is PEFT (pip install peft) with the
same adapter on the same checkpoint, run by `transformers` in bf16.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from step_implementations import missing
from step_runner import Child, run_interleaved
from step_setting import Setting, write_checkpoint

IMPLEMENTATIONS = {
    "ours": "all weights, bf16 products",
    "ours-lora": "LoRA, base in bf16",
    "ours-qlora": "QLoRA, base in NF4",
    "peft-kept": "PEFT's LoRA, base in bf16",
    "ours-lora-float32": "LoRA, all in float32",
}
IDLE = "import mini_chat_gpt.training.run, step_implementations; print(step_implementations.peak_bytes())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(IMPLEMENTATIONS), choices=list(IMPLEMENTATIONS))
    parser.add_argument("--n-layer", type=int, default=12)
    parser.add_argument("--n-embd", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--trained", type=float, default=0.4, help="share of an example's tokens that are supervised")
    parser.add_argument("--batch-size", type=int, default=4, help="examples per step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--turn", type=float, default=6.0, help="seconds per turn of an implementation")
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
    n_linear = setting.n_layer * (4 * setting.n_embd**2 + 3 * setting.n_embd * setting.mlp_size)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(setting, Path(folder) / "model")
        children = []
        for name in args.only:
            if reason := missing(name, None):
                print(f"{name}: skipped, {reason}")
                continue
            children.append(Child(name, setting, checkpoint, None))
        run_interleaved(children, args.rounds, args.turn)
        idle = int(subprocess.check_output([sys.executable, "-c", IDLE], cwd=Path(__file__).parent))
        print(f"{n_linear / 1e6:.1f} M parameters in linear layers; an idle process: {idle / 2**20:.0f} MiB")
        print(f"{'':28}  tokens/s     of full  peak MiB  less than full")
        full: tuple[float, int] | None = None
        for child in children:
            rate = statistics.median(step["tokens"] / step["seconds"] for step in child.steps)
            peak = child.quit()
            full = full or (rate, peak)
            less = (full[1] - peak) / 2**20
            print(
                f"{IMPLEMENTATIONS[child.name]:28} {rate:9,.0f}  {rate / full[0]:9.2f}  {peak / 2**20:8,.0f}  {less:14,.0f}"
            )
        print(f"4 bits instead of 16 save {n_linear * (16 - 4.127) / 8 / 2**20:,.0f} MiB of weights.")


if __name__ == "__main__":
    main()
