"""Speed of generation on one core: `OMP_NUM_THREADS=1 python benchmarks/generation.py [--llama2c FOLDER] [--sizes 15m 110m]`.

Tables: tokens per second of replies, one and sixteen at a time; prefill; replies that copy from their prompt; the first token
of a chat reply. The comparisons are Hugging Face's `generate`, llama2.c's run.c (from a checkout in FOLDER, compiled with
-Ofast; without one its column is omitted), and the limits of memory bandwidth or arithmetic, measured in the same run.
Implementations are interleaved; numbers are medians. All use the same random weights.
"""

from __future__ import annotations

import argparse
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from mini_chat_gpt.chat.session import ChatSession
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.hf import to_hf_config, to_hf_state
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.decode import decode, random_streams
from mini_chat_gpt.generation.prompt_lookup import PromptLookupDecoder
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.layers import RMSNorm
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

VOCABULARY, BOS = 32000, 1
SIZES = {
    "15m": GPTConfig(
        vocab_size=VOCABULARY, n_layer=6, n_head=6, n_embd=288, intermediate_size=768, context_length=1024
    ),
    "110m": GPTConfig(
        vocab_size=VOCABULARY, n_layer=12, n_head=12, n_embd=768, intermediate_size=2048, context_length=1024
    ),
}
N_NEW = {("15m", 1): 128, ("15m", 16): 32, ("110m", 1): 40, ("110m", 16): 10}
WEIGHTS = ("float32", "bf16", "int8")
BYTES = {"float32": 4, "bf16": 2, "int8": 1}
# The attributes of a tokenizer that `decode` uses; no stop id ends a reply early.
TOKENIZER: Any = SimpleNamespace(stop_ids=frozenset(), control={}, vocab_size=VOCABULARY, declared=None)

Work = Callable[[], float]  # does the work once and returns the seconds


def alternate(implementations: dict[str, Work], rounds: int) -> dict[str, float]:
    """Median seconds of each, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for number in range(rounds + 1):
        for name, work in implementations.items():
            taken = work()
            if number:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def timed(work: Callable[[], object]) -> Work:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return once


def random_model(config: GPTConfig) -> GPT:
    """A model with weights large enough that greedy replies vary and logits are as far apart as in a trained model."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
        cast(RMSNorm, model.norm).weight.mul_(3)
    return model


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


# Other implementations


class HuggingFace:
    """transformers' Llama with a model's weights."""

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer: Any = SimpleNamespace(
            bos_id=BOS, end_id=2, stop_ids={2}, vocab_size=VOCABULARY, control={}, declared=None
        )
        self.model = LlamaForCausalLM(LlamaConfig(**to_hf_config(model.config, tokenizer))).eval()
        self.model.load_state_dict(to_hf_state(model.state_dict(), model.config), strict=False)
        self.model.tie_weights()
        self.model = self.model.to(dtype)

    @torch.inference_mode()
    def reply(self, prompts: torch.Tensor, n_new: int) -> list[list[int]]:
        from transformers import GenerationConfig

        settings = GenerationConfig(
            max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        ids: list[list[int]] = self.model.generate(prompts, generation_config=settings)[:, prompts.shape[1] :].tolist()
        return ids

    @torch.inference_mode()
    def read(self, prompt: torch.Tensor) -> None:
        self.model(prompt, use_cache=True, logits_to_keep=1)


class RunC:
    """llama2.c's run.c, compiled, with a model's weights in its format."""

    def __init__(self, source: Path, model: GPT, folder: Path) -> None:
        self.program, self.weights, self.folder = folder / "run", folder / f"{model.n_parameters()}.bin", folder
        command = ["gcc", "-Ofast", "-march=native", "-o", str(self.program), str(source / "run.c"), "-lm"]
        subprocess.run(command, check=True)
        self.weights.write_bytes(b"".join(llama2c_parts(model)))
        entry = struct.pack("<fi", 0.0, 1) + b"x"
        (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 1) + entry * VOCABULARY)

    def run(self, n_steps: int) -> tuple[str, float]:
        """Its output, and the tokens per second that it reports."""
        command = [str(self.program), str(self.weights), "-t", "0", "-n", str(n_steps)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=self.folder)
        speed = re.search(r"achieved tok/s: ([\d.]+)", done.stderr)
        if speed is None:
            sys.exit(f"run.c did not report its speed: {done.stderr}")
        return done.stdout, float(speed[1])


def llama2c_parts(model: GPT) -> Iterator[bytes]:
    """Our model in llama2.c's original `.bin` format."""
    config, state = model.config, model.state_dict()
    sizes = (config.n_embd, config.mlp_size, config.n_layer, config.n_head, config.kv_heads, config.vocab_size)
    yield struct.pack("<7i", *sizes, config.context_length)
    yield state["embed_tokens.weight"].numpy().tobytes()
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    names = ["input_layernorm", *attention, "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]
    for name in names:
        for layer in range(config.n_layer):
            weight = state[f"layers.{layer}.{name}.weight"]
            # run.c rotates neighboring pairs, we rotate the two halves of a head.
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                halves = weight.view(-1, 2, config.head_size // 2, weight.shape[1])
                weight = halves.transpose(1, 2).reshape(weight.shape)
            yield weight.numpy().tobytes()
    yield state["norm.weight"].numpy().tobytes()
    yield bytes(4 * config.context_length * config.head_size)  # tables that run.c no longer reads


# Limits


def memory_bandwidth() -> float:
    """Bytes per second that this core reads, the best of several methods and repetitions."""
    numbers = torch.ones(64 * 2**20)
    array = numbers.numpy()
    methods = (lambda: numbers.sum(), lambda: np.dot(array, array), lambda: numbers.max())
    return numbers.nbytes / min(timed(method)() for method in methods for _ in range(5))


def matrix_peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, (512, 768) by (768, 4096)."""
    x, weight = torch.randn(512, 768).to(dtype), torch.randn(4096, 768).to(dtype)
    return 2 * 512 * 768 * 4096 / min(timed(lambda: F.linear(x, weight))() for _ in range(15))


def needed_work(config: GPTConfig, n_tokens: int) -> float:
    """FLOP of the prefill of a prompt: all weights for all tokens, but in the last block only k and v of the tokens before the last."""
    width, heads = config.n_embd, config.n_head * config.head_size
    kv = 2 * width * config.kv_heads * config.head_size
    others = 2 * width * heads + 3 * width * config.mlp_size
    per_layer = n_tokens * (kv + others) + n_tokens * (n_tokens + 1) / 2 * 2 * heads
    last = n_tokens * kv + others + n_tokens * 2 * heads
    return 2 * ((config.n_layer - 1) * per_layer + last + width * config.vocab_size)


# Tables


def our_reply(model: CPUInferenceModel, prompts: torch.Tensor, n_new: int, lookup: bool = False) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    sampling = Sampling(temperature=0, max_new_tokens=n_new)
    streams = random_streams(0, range(len(prompts)))
    for step in decode(model, TOKENIZER, prompts.tolist(), sampling, streams, prompt_lookup=lookup):
        rows[step.row].append(step.token_id)
    return rows


def replies(size: str, model: GPT, n_rows: int, run_c: RunC | None, rounds: int) -> None:
    """Tokens per second of replies."""
    n_new, forms = N_NEW[size, n_rows], {weights: CPUInferenceModel(model, weights) for weights in WEIGHTS}
    prompts = torch.full((n_rows, 1), BOS) if n_rows == 1 else torch.randint(3, VOCABULARY, (n_rows, 8))
    hf = {"float32": HuggingFace(model, torch.float32), "bf16": HuggingFace(model, torch.bfloat16)}
    implementations = {f"ours {name}": timed(partial(our_reply, form, prompts, n_new)) for name, form in forms.items()}
    implementations |= {f"HF {name}": timed(partial(peer.reply, prompts, n_new)) for name, peer in hf.items()}
    if run_c is not None and n_rows == 1:
        implementations["run.c"] = lambda: n_new / run_c.run(n_new)[1]
        same_tokens(run_c, forms["float32"], prompts, n_new)
    rate = {name: n_rows * n_new / seconds for name, seconds in alternate(implementations, rounds).items()}
    bandwidth = memory_bandwidth()
    rows = []
    for name, tokens in rate.items():
        kind = name.removeprefix("ours ") if name.startswith("ours") else ""
        limit = f"{bandwidth / (BYTES[kind] * model.n_parameters()):,.0f}" if kind and n_rows == 1 else ""
        row = [name, f"{tokens:,.0f}", f"{tokens / rate['HF float32']:.2f}"]
        row += [f"{tokens / rate['run.c']:.2f}"] if "run.c" in rate else []
        rows.append([*row, limit] if n_rows == 1 else row)
    header = ["", "tokens/s", "× HF float32", *["× run.c"] * ("run.c" in rate)]
    header += [f"limit: weights at {bandwidth / 1e9:.0f} GB/s"] * (n_rows == 1)
    table(f"Replies: {size}, batch {n_rows}, {n_new} tokens", header, rows)


def same_tokens(run_c: RunC, form: CPUInferenceModel, prompts: torch.Tensor, n_new: int) -> None:
    """Compare greedy tokens if run.c was changed to print ids (an unchanged checkout prints text)."""
    printed, [ours] = run_c.run(n_new)[0].split(), our_reply(form, prompts, n_new)
    if all(word.isdigit() for word in printed):
        n_same = next(
            (at for at, pair in enumerate(zip(printed, ours, strict=False)) if int(pair[0]) != pair[1]), n_new
        )
        print(
            f"\nGreedy tokens of run.c and ours: the first {n_same} of {n_new} are equal ({len(set(ours))} distinct tokens)."
        )


def prompts_read(size: str, model: GPT, rounds: int) -> None:
    """Prefill: the necessary work as a share of the processor's peak."""
    config, rows = model.config, []
    hf = {"float32": HuggingFace(model, torch.float32), "bf16": HuggingFace(model, torch.bfloat16)}
    forms = {weights: CPUInferenceModel(model, weights, few_rows=False) for weights in WEIGHTS}
    for length in (512, 1000):
        ids = torch.randint(3, VOCABULARY, (1, length))
        implementations = {f"ours {name}": timed(partial(read, form, ids)) for name, form in forms.items()}
        implementations |= {f"HF {name}": timed(partial(peer.read, ids)) for name, peer in hf.items()}
        peaks: dict[str, Work] = {
            "peak float32": lambda: 1 / matrix_peak(torch.float32),
            "peak bf16": lambda: 1 / matrix_peak(torch.bfloat16),
        }
        seconds = alternate(implementations | peaks, rounds)
        for name in implementations:
            kind = "float32" if name.endswith("float32") else "bf16"
            share = needed_work(config, length) / seconds[name] * seconds[f"peak {kind}"]
            peer = seconds[f"HF {kind}"] / seconds[name]
            peak = f"{share:.0%} of {1e-9 / seconds[f'peak {kind}']:.0f} GFLOP/s"
            rows.append(
                [
                    f"{length}",
                    name,
                    f"{1000 * seconds[name]:.0f} ms",
                    f"{length / seconds[name]:,.0f}",
                    f"{peer:.2f}",
                    peak,
                ]
            )
    table(
        f"Prompts: {size}",
        [
            "tokens",
            "",
            "time",
            "tokens/s",
            "× HF in that type (int8: in bf16)",
            "necessary work, share of that type's peak",
        ],
        rows,
    )


def read(form: CPUInferenceModel, ids: torch.Tensor) -> None:
    form.next_logits(ids, form.make_cache(1, ids.shape[1]), [ids.shape[1]])


def copies(size: str, model: GPT, rounds: int) -> None:
    """Fixed replies of 96 tokens, of which a share occurs in the prompt of 200 tokens, with and without prompt lookup decoding."""
    rows, rng = [], np.random.default_rng(0)
    prompt = rng.permutation(np.arange(3, VOCABULARY))[:200].tolist()
    never = torch.tensor([0])
    for weights in ("float32", "bf16"):
        form = CPUInferenceModel(model, weights)  # type: ignore[arg-type]
        for piece, every in ((96, 96), (16, 24), (8, 24), (0, 24)):
            script: list[int] = []
            while len(script) < 96:
                at = int(rng.integers(0, 100))
                script += prompt[at : at + piece] + rng.integers(3, VOCABULARY, every - piece).tolist()

            def follow(lookup: bool, form: CPUInferenceModel = form, script: list[int] = script[:96]) -> float:
                cache = form.make_cache(1, 320)
                form.next_logits(torch.tensor([prompt]), cache, [len(prompt)])
                reader = PromptLookupDecoder(form, prompt, never) if lookup else form
                return timed(
                    lambda: [reader.next_logits(torch.tensor([[token_id]]), cache, [1]) for token_id in script]
                )()

            with torch.inference_mode():
                seconds = alternate({"plain": lambda: follow(False), "lookup": lambda: follow(True)}, rounds)
            rates = [f"{len(script[:96]) / seconds[name]:,.0f}" for name in ("plain", "lookup")]
            rows.append(
                [
                    weights,
                    f"{piece / every:.0%} in pieces of {piece}",
                    *rates,
                    f"{seconds['plain'] / seconds['lookup']:.2f}",
                ]
            )
    table(f"Copying: {size}, batch 1", ["weights", "copied", "tokens/s", "with lookup", "ratio"], rows)


def first_token(size: str, rounds: int) -> None:
    """Time to the first token of a chat reply after about 1,000 tokens of history, in the KV cache and not."""
    tokenizer = ChatTokenizer.train(["a b c d e f g h"] * 9, 260)
    tokenizer.chat_format = ChatFormat()
    model = random_model(SIZES[size].model_copy(update={"context_length": 2048}))
    cached = ChatSession(model, tokenizer, Sampling(temperature=0, max_new_tokens=3))
    list(cached.send("a b c d e " * 99))
    history = len(cached._ids)

    def ask(session: ChatSession) -> None:
        list(session.send("a?"))
        session.undo()

    def uncached() -> float:
        session = ChatSession(model, tokenizer, cached.sampling)
        session._inference_model, session.turns = cached._inference_model, list(cached.turns)
        return timed(lambda: ask(session))()

    seconds = alternate({"in the KV cache": timed(lambda: ask(cached)), "not cached": uncached}, rounds)
    row = [f"{history:,}", *[f"{1000 * seconds[name]:.0f} ms" for name in seconds]]
    table(f"Chat: {size}, a question and three tokens of the reply", ["history, tokens", *seconds], [row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama2c", type=Path, metavar="FOLDER", help="checkout of llama2.c, for its run.c")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    if arguments.llama2c is None:
        print("Without run.c; --llama2c FOLDER names a checkout of llama2.c.")
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            model = random_model(SIZES[size])
            for part in arguments.parts:
                run_c = RunC(arguments.llama2c, model, Path(folder)) if arguments.llama2c and part == "single" else None
                PARTS[part](size, model, run_c, arguments.rounds)


PARTS: dict[str, Callable[[str, GPT, RunC | None, int], None]] = {
    "single": lambda size, model, run_c, rounds: replies(size, model, 1, run_c, rounds),
    "batch": lambda size, model, run_c, rounds: replies(size, model, 16, run_c, rounds),
    "prompts": lambda size, model, run_c, rounds: prompts_read(size, model, rounds),
    "copies": lambda size, model, run_c, rounds: copies(size, model, rounds),
    "chat": lambda size, model, run_c, rounds: first_token(size, rounds),
}

if __name__ == "__main__":
    main()
