"""The data pipeline from text to the training step, compared with its limits: `python benchmarks/data.py [--parts render workers …]`.

    render      rendering into arrays, compared with tiktoken's `encode_ordinary`; parsing, task rules and whole examples
    workers     examples per second of two worker processes, one worker process, and no worker
    tokenizer   training a tokenizer, compared with rustbpe and tokenizers
    index       a file of 2.66 GB: indexing time, memory, and the first example at the next start
    waiting     share of a training run in which the step waits for examples
    start       `mini-chat-gpt [VERB] --help`, and the time from starting a command to its first training step

Records are those of the generated sample (or of --data, a folder with TinyStoriesInstruct-train.txt); the tokenizer is GPT-2's.
All numbers of a line are medians of one run; compared implementations are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

BIG = 2_660_000_000  # bytes of the public train file


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(implementations: dict[str, Callable[[], Any]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each; every round runs each of them once."""
    times = [{name: seconds(work) for name, work in implementations.items()} for _ in range(rounds)]
    return {name: statistics.median(time[name] for time in times) for name in implementations}


def line(what: str, ours: str, limit: str = "", ratio: float | None = None, goal: str = "") -> None:
    print(f"{what:<42}{ours:>16}{limit:>36}{'' if ratio is None else f'{ratio:.2f}':>8}  {goal}".rstrip(), flush=True)


def child(code: str, *arguments: object, environment: dict[str, str] | None = None) -> Any:
    """Parse the last line that a new Python process prints as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}))
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def gpt2() -> Any:
    """GPT-2's tokenizer with the control tokens; from the folder MINI_CHAT_GPT_DATA if it is there."""
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

    file = Path(os.environ.get("MINI_CHAT_GPT_DATA", "")) / "gpt2-bpe" / "gpt2.tiktoken"
    tokenizer = ChatTokenizer.load(file if file.is_file() else "gpt2")
    tokenizer.add_control_tokens()
    return tokenizer


def quickstart_source(file: Path, tokenizer: Any) -> Any:
    """The examples of the quickstart after its first curriculum stage."""
    from mini_chat_gpt.cli_options import QUICKSTART_CONFIG
    from mini_chat_gpt.config_file import load_config
    from mini_chat_gpt.sft_dataloader import InstructDataset

    return InstructDataset(file, tokenizer, load_config(QUICKSTART_CONFIG).data.limited_to(512), seed=1337)


def measure_render(file: Path) -> None:
    from mini_chat_gpt.chat_format import render_spans
    from mini_chat_gpt.config import DataSection
    from mini_chat_gpt.sft_dataloader import InstructDataset
    from mini_chat_gpt.tinystories.records import decode, parse_record, raw_records
    from mini_chat_gpt.tinystories.tasks import generate_tasks
    from mini_chat_gpt.tinystories.truncation import messages_of

    tokenizer, n = gpt2(), 1000
    texts = [decode(chunk) for _, chunk in islice(raw_records(file), n)]
    records = [parse_record(text) for text in texts]
    trained = ["words", "summary", "what_happened", "moral", "main_character", "ending", "dialogue", "why"]
    chats = [messages_of(task) for record in records for task in generate_tasks(record, 0, trained)][:n]
    contents = [message.content for chat in chats for message in chat]
    size, raw = sum(len(text.encode()) for text in contents), tokenizer.encoder._encoding.encode_ordinary
    joined = "\n".join(contents)
    single = InstructDataset(file, tokenizer, DataSection(turns=1, answer_weight=0), 1337)
    several = InstructDataset(file, tokenizer, DataSection(turns=4, answer_weight=0), 1337)
    quick = quickstart_source(file, tokenizer)
    taken = interleaved(
        {
            "render": lambda: [render_spans(chat, tokenizer) for chat in chats],
            "encode": lambda: [raw(text) for text in contents],
            "at once": lambda: raw(joined),
            "parse": lambda: [parse_record(text) for text in texts],
            "rules": lambda: [generate_tasks(record, 0, trained) for record in records],
            "single": lambda: [single[slot] for slot in range(n)],
            "several": lambda: [several[slot] for slot in range(n)],
            "quick": lambda: [quick[slot] for slot in range(n)],
        }
    )
    rate = {name: size / taken[name] / 1e6 for name in ("render", "encode", "at once")}
    line("render into arrays", f"{rate['render']:.1f} MB/s", f"encode_ordinary, one text per call {rate['encode']:.1f}",
         rate["render"] / rate["encode"], "goal 0.70")  # fmt: skip
    line("", "", f"encode_ordinary of all as one text {rate['at once']:.1f}", rate["render"] / rate["at once"])
    parsed = sum(len(text.encode()) for text in texts) / taken["parse"] / 1e6
    line("parsing", f"{taken['parse'] / n * 1e6:.0f} µs per record", f"{parsed:.0f} MB/s")
    line("task rules, all 8 default kinds", f"{taken['rules'] / n * 1e6:.0f} µs per record")
    for name, what in (("single", "1 turn"), ("several", "up to 4 turns"), ("quick", "quickstart")):
        tokens = sum(len({"single": single, "several": several, "quick": quick}[name][i].ids) for i in range(n))
        rate_of = f"{tokens / taken[name] / 1e3:,.0f} thousand tokens/s"
        line(f"record to example, {what}", f"{taken[name] / n * 1e6:.0f} µs", rate_of)


def measure_workers(file: Path) -> None:
    from mini_chat_gpt.data.step_loader import read_examples

    source = quickstart_source(file, gpt2())

    def rate(workers: int, n: int = 4000, warm_up: int = 1000) -> float:
        stream = read_examples(source, range(10**6), workers)
        for _ in islice(stream, warm_up):
            pass
        return n / seconds(lambda: [None for _ in islice(stream, n)])

    rounds = [[rate(workers) for workers in (0, 1, 2)] for _ in range(5)]
    none, one, two = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(row[2] / row[1] for row in rounds)
    line("one worker", f"{one:,.0f} examples/s", f"inline {none:,.0f}", one / none)
    line("two workers", f"{two:,.0f} examples/s", f"one worker {one:,.0f}", ratio, "goal 1.8")


def measure_tokenizer(file: Path) -> None:
    import rustbpe
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from mini_chat_gpt.tinystories.records import stories
    from mini_chat_gpt.tokenizer.bpe import DEFAULT_PATTERN
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

    texts = list(islice(stories(file), 30_000)) * 2
    size = sum(len(text.encode()) for text in texts) / 1e6

    def hugging_face() -> None:
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(DEFAULT_PATTERN), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=4092, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)

    taken = interleaved(
        {
            "ours": lambda: ChatTokenizer.train(texts, 4096),
            "rustbpe": lambda: rustbpe.Tokenizer().train_from_iterator(iter(texts), 4092, pattern=DEFAULT_PATTERN),
            "tokenizers": hugging_face,
        },
        rounds=3,
    )
    ours = size / taken["ours"]
    for peer, goal in (("rustbpe", "goal 15 MB/s"), ("tokenizers", "")):
        name = f"tokenizer of 4,096 entries, {size:.0f} MB" if goal else ""
        line(name, f"{ours:.1f} MB/s", f"{peer} {size / taken[peer]:.1f}", taken[peer] / taken["ours"], goal)


INDEX = """
import json, resource, sys, time
from mini_chat_gpt.tinystories.record_index import RecordIndex
started = time.perf_counter()
index = RecordIndex(sys.argv[1])
taken = time.perf_counter() - started
print(json.dumps([taken, len(index), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""
READ = """
import json, sys, time
started = time.perf_counter()
with open(sys.argv[1], "rb") as file:
    while file.read(1 << 19): pass
print(json.dumps(time.perf_counter() - started))
"""
FIRST_BATCH = """
import json, sys, time
born = float(sys.argv[1])
began = time.time()
from mini_chat_gpt.common.entry import importing
with importing():  # as the command line does
    import torch
    torch_imported = time.time()
    from pathlib import Path
    from mini_chat_gpt.config import DataSection
    from mini_chat_gpt.data.batching import collate
    from mini_chat_gpt.sft_dataloader import InstructDataset
    from mini_chat_gpt.tinystories.record_index import RecordIndex
    from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
package_imported = time.time()
tokenizer = ChatTokenizer.load(sys.argv[3])
tokenizer_loaded = time.time()
index = RecordIndex(sys.argv[2])
index_loaded = time.time()
source = InstructDataset(index, tokenizer, DataSection(turns=1, answer_weight=0), 1337)
dataset_made = time.time()
collate([source[i] for i in range(32)])
end = time.time()
moments = [born, began, torch_imported, package_imported, tokenizer_loaded, index_loaded, dataset_made, end]
print(json.dumps([later - earlier for earlier, later in zip(moments, moments[1:])]))
"""


def measure_index(file: Path, folder: Path) -> None:
    big = folder / "big-train.txt"
    one = file.read_bytes()
    try:
        with open(big, "wb") as out:
            for _ in range(-(-BIG // len(one))):
                out.write(one)
        del one
        size = big.stat().st_size / 1e6
        raw = child(READ, big)
        taken, records, memory = child(INDEX, big)
        line(f"index {size / 1e3:.2f} GB, {records:,} records", f"{size / taken:.0f} MB/s", f"only reading {size / raw:,.0f}",
             raw / taken, "goal 300 MB/s")  # fmt: skip
        line("   memory of the process", f"{memory / 1e6:.0f} MB", goal="goal < 500 MB")
        saved = folder / "tokenizer"
        gpt2().save(saved)
        runs = [child(FIRST_BATCH, time.time(), big, saved) for _ in range(5)]
        parts = [statistics.median(column) for column in zip(*runs, strict=True)]
        total = statistics.median(sum(run) for run in runs)
        line(
            "next start: first batch of 32 after",
            f"{total:.2f} s",
            f"import torch alone {parts[1]:.2f}",
            goal="goal 2 s",
        )
        names = ("Python", "torch", "this package", "tokenizer", "index from its cache", "dataset", "32 examples")
        print("   " + ", ".join(f"{name} {part:.2f}" for name, part in zip(names, parts, strict=True)))
    finally:
        for leftover in folder.glob("big-train*"):
            leftover.unlink()


def command() -> list[str]:
    return [sys.executable, "-m", "mini_chat_gpt.cli"]


def in_folder(folder: Path, arguments: Sequence[str]) -> None:
    done = subprocess.run([*command(), *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def quickstart_run(folder: Path, sft: str, *changes: str) -> list[str]:
    """Arguments of the quickstart's fine-tuning, short and without evaluations."""
    from mini_chat_gpt.cli_options import QUICKSTART_CONFIG

    return ["sft", "--config", str(QUICKSTART_CONFIG), f"sft.dataset_path={folder}", f"pretrain.dataset_path={folder}",
            f"sft.pretrained_checkpoint={folder}/base", f"sft.save_dir={folder}/{sft}", "data.eval_examples=8",
            *changes]  # fmt: skip


def make_base(folder: Path) -> None:
    from mini_chat_gpt.cli_options import QUICKSTART_CONFIG

    base = [
        "pretrain",
        "--config",
        str(QUICKSTART_CONFIG),
        f"pretrain.dataset_path={folder}",
        f"pretrain.save_dir={folder}/base",
    ]
    in_folder(folder, [*base, "pretrain.max_steps=2", "data.eval_examples=8"])


STAGES = {
    "first stage": "data.curriculum=[{share: 0.99, seq_len: 96, turns: 1, tokens_per_step: 768}]",
    "afterwards": "data.curriculum=[]",
}


def waiting(folder: Path, run: str, *changes: str) -> tuple[float, float]:
    """(share of the time in which the step waits for examples, tokens per second) of a short run without its first quarter."""
    in_folder(folder, quickstart_run(folder, run, *changes))
    rows = [json.loads(text) for text in (folder / run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "sft/data_wait_share" in row]
    rows = rows[len(rows) // 4 :]
    share = statistics.mean(row["sft/data_wait_share"] for row in rows)
    return share, statistics.median(row["sft/tokens_per_second"] for row in rows)


def measure_waiting(folder: Path, threads: int, steps: int, rounds: int) -> None:
    settings = [f"sft.max_steps={steps}", f"system.threads={threads}"]
    for name, stage in STAGES.items():
        runs: dict[int, list[tuple[float, float]]] = {1: [], 0: []}
        for number in range(rounds):  # interleaved
            for workers in runs:
                run = f"waiting-{name.replace(' ', '-')}-{workers}-{number}"
                runs[workers].append(waiting(folder, run, stage, f"data.num_workers={workers}", *settings))
        rates = {workers: statistics.median(rate for _, rate in results) for workers, results in runs.items()}
        for workers, results in runs.items():
            share = statistics.median(share for share, _ in results)
            compared = f"each round {', '.join(f'{rate:,.0f}' for _, rate in results)}"
            line(f"quickstart, {name}, num_workers={workers}", f"{share:.1%} waiting", f"{rates[workers]:,.0f} tokens/s",
                 rates[workers] / rates[0], f"goal ≤ 2 %; {compared}")  # fmt: skip


def measure_start(folder: Path, verbs: Iterable[str] | None) -> None:
    from mini_chat_gpt.cli import VERBS

    light = [sys.executable, "-c", "import pydantic, yaml"]
    base = statistics.median(seconds(lambda: subprocess.run(light)) for _ in range(10))
    commands = [[verb, "--help"] for verb in (verbs if verbs is not None else VERBS)]
    for arguments in [["--help"], *commands, ["sft", "trainig.batch_size=3"]]:
        times = [seconds(lambda: subprocess.run([*command(), *arguments], capture_output=True)) for _ in range(5)]  # noqa: B023
        median = statistics.median(times)
        line(f"mini-chat-gpt {' '.join(arguments)}", f"{median:.2f} s", f"import pydantic, yaml {base:.2f}", median / base,
             "goal 1.5 times")  # fmt: skip
    torch = statistics.median(seconds(lambda: subprocess.run([sys.executable, "-c", "import torch"])) for _ in range(5))
    taken = []
    for number in range(3):
        run = f"start-{number}"
        born = time.time()
        in_folder(folder, quickstart_run(folder, run, "data.curriculum=[]", "sft.max_steps=1", "sft.eval_interval=2"))
        rows = [json.loads(text) for text in (folder / run / "metrics.jsonl").read_text().splitlines()]
        taken.append(next(row["time"] for row in rows if "sft/train_loss" in row) - born)
    line("mini-chat-gpt sft: first step done after", f"{statistics.median(taken):.2f} s", f"import torch {torch:.2f}")


PARTS = ("render", "workers", "tokenizer", "index", "waiting", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument(
        "--data", type=Path, help="folder with TinyStoriesInstruct files (default: the generated sample)"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads of the training step in `waiting`"
    )
    parser.add_argument("--steps", type=int, default=40, help="steps of each training run in `waiting`")
    parser.add_argument("--rounds", type=int, default=3, help="training runs in `waiting`, with and without a worker")
    parser.add_argument("--verbs", nargs="*", help="verbs whose --help is timed (default: all)")
    parser.add_argument("--scratch", help="folder with 2.7 GB of free space (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        from mini_chat_gpt.prepare.sample_stories import write_sample

        write_sample(folder)
        if args.data is not None:
            for split in ("train", "valid"):
                name = f"TinyStoriesInstruct-{split}.txt"
                (folder / name).write_bytes((args.data / name).read_bytes())
        file = folder / "TinyStoriesInstruct-train.txt"
        print(f"{'':<42}{'ours':>16}{'limit or peer':>36}{'ratio':>8}")
        if {"waiting", "start"} & set(args.parts):
            make_base(folder)
        for part in args.parts:
            print(f"\n{part}")
            if part == "waiting":
                measure_waiting(folder, args.threads, args.steps, args.rounds)
            elif part == "start":
                measure_start(folder, args.verbs)
            elif part == "index":
                measure_index(file, folder)
            else:
                {"render": measure_render, "workers": measure_workers, "tokenizer": measure_tokenizer}[part](file)
    print(f"\npeak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB")


if __name__ == "__main__":
    main()
