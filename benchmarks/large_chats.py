"""Write a file of many chats, and measure a run's first and later starts with it: `python benchmarks/large_chats.py --n 1000000 FOLDER`.

    --make     write FOLDER/chats.jsonl (1 GB for a million chats) and a tokenizer
    --measure  read it as a run does, and print time and peak memory; under torchrun, of each process

Without either, it does both: the first start and two later ones, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

WORDS = """
a able about after again air all also always an and animal any apple are as ask at away back be because before began best big bird
blue boat book both boy bread bring brother build but by call came can car cat chair change child city close cloud cold come could
country cup cut dark day did different do dog door down draw each early earth eat egg end enough even every eye face far farm fast
father few field find fire first fish five floor flower fly food for found friend from garden gave girl give go good grass great
green ground grow half hand happy hard has have he head hear heart help her here high hill him his hold home horse hot house how
hundred ice idea if important in into is it its keep kind know large last late laugh learn left letter light like line listen
little live long look made make man many map may mean milk money moon more morning most mother mountain move much music name near
need never new next night no north nothing number of off often old on once one only open or other our out over own page paper part
people picture place plant play point put question quick rain read red right river road room round run said same saw school sea
second see seem sentence set she ship short should show side sing sister sit sky sleep slow small snow so some song soon sound
south spell stand star start stone stop story street strong study such sun sure table take talk tell ten than that the their them
then there these they thing think this three through time to today together too took top town tree true try turn two under until
up us use very voice walk want warm was watch water way we well went were what when where which while white who why wind window
winter with without word work world would write year yellow yes you young your
"""
"""A common vocabulary, so that the texts have about as many tokens per word as English."""


def write(path: Path, n: int, seed: int = 0) -> None:
    """Write n chats of one to four exchanges, about 1,000 bytes each; a few are much longer."""
    rng, common = random.Random(seed), WORDS.split()

    def texts(mean: int) -> list[str]:
        lengths = (max(3, round(rng.gammavariate(2, mean / 2))) for _ in range(20_000))
        return [" ".join(rng.choices(common, k=n)).capitalize() + "." for n in lengths]

    questions, replies = texts(20), texts(55)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(n):
            messages = [{"role": "system", "content": "Be brief and polite."}] if number % 3 == 0 else []
            for _ in range(rng.choice((1, 1, 2, 3, 4)) * (40 if number % 1000 == 0 else 1)):
                messages.append({"role": "user", "content": rng.choice(questions)})
                messages.append({"role": "assistant", "content": rng.choice(replies)})
            file.write(json.dumps({"messages": messages}) + "\n")


def start(folder: Path, seq_len: int) -> None:
    """Read the chats as a run does, and print what it takes."""
    began = time.monotonic()
    from mini_chat_gpt.common import distributed
    from mini_chat_gpt.common.terminal import console
    from mini_chat_gpt.config_file import load_config
    from mini_chat_gpt.tokenizer import ChatTokenizer
    from mini_chat_gpt.training.sft_data import make_examples

    world = distributed.join("cpu")
    imported = time.monotonic()
    config = load_config(None, [f"chats.files={folder / 'chats.jsonl'}", f"data.seq_len={seq_len}"])
    tokenizer = ChatTokenizer.load(folder / "tokenizer")
    base = _memory()
    with world.local_rank_zero_first():
        examples = make_examples(config, tokenizer, seq_len, console() if world.is_main else None)
    ready = time.monotonic()
    source = examples.source
    first = source[world.rank]
    epoch = time.monotonic()
    for index in range(1000):
        source[index]
    read = time.monotonic()
    cpu = time.process_time()
    assert len(first.ids) <= seq_len
    for note in examples.notes if world.is_main else ():
        print(note)
    print(
        f"rank {world.rank}: import {imported - began:.1f} s, chats {ready - imported:.1f} s, first example {epoch - ready:.2f} s, "
        f"{1000 / (read - epoch):,.0f} examples/s; {len(source):,} examples per epoch; memory before {base:.0f} MB, peak "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, at the end {_memory():.0f} MB (not of files "
        f"{_memory('RssAnon'):.0f} MB); CPU {cpu:.1f} s",
        flush=True,
    )
    distributed.leave()


def _memory(kind: str = "VmRSS") -> float:
    """Resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    path = arguments.folder / "chats.jsonl"
    if arguments.measure:
        start(arguments.folder, arguments.seq_len)
        return
    if arguments.make or not path.exists():
        from mini_chat_gpt.tokenizer import ChatTokenizer

        arguments.folder.mkdir(parents=True, exist_ok=True)
        write(path, arguments.n)
        texts = (message["content"] for line in open(path) for message in json.loads(line)["messages"])
        tokenizer = ChatTokenizer.train((text for text, _ in zip(texts, range(20_000), strict=False)), 4096)
        tokenizer.add_control_tokens()
        tokenizer.save(arguments.folder / "tokenizer")
        print(f"{path}: {arguments.n:,} chats, {path.stat().st_size / 1e9:.2f} GB", flush=True)
    if arguments.make:
        return
    command = [sys.executable, __file__, str(arguments.folder), "--measure", f"--seq-len={arguments.seq_len}"]
    for _ in range(3):
        subprocess.run(command, check=True, env={**os.environ})


if __name__ == "__main__":
    main()
