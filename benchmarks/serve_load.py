"""Load on the server: many clients for minutes, and what the server costs compared with `generate`.

    python benchmarks/serve_load.py --checkpoint runs/quickstart/sft [--seconds 300] [--clients 16] [--json FILE]

1. `--clients` clients with prompts and replies of different lengths, of which a fifth leave in the middle: errors, memory in the first
   minute and in the last (the prefix cache has a bound that it reaches in the first), tokens per second, and the times of first token
   and whole reply (50 and 95 percent).
2. Tokens per second of eight clients and of one, and of `generate` on a batch of eight and of one, all with replies of the same length.
3. Time to the first token of a long prompt: alone; for eight that arrive one prompt-time apart; for eight that arrive together.

The server is a process of its own, as `mini-chat-gpt serve` starts it. Needs the extra `serve` and httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx

WORDS = (
    "dog",
    "cat",
    "ball",
    "sun",
    "tree",
    "happy",
    "little",
    "big",
    "red",
    "park",
    "friend",
    "house",
    "rain",
    "river",
)
REPLY_TOKENS, ROUNDS, PREFIX_MB = 128, 3, 32


def prompt(rng: random.Random, n_words: int) -> str:
    return "Tell me a story about " + " ".join(rng.choice(WORDS) for _ in range(n_words))


async def ask(
    client: httpx.AsyncClient, text: str, n_tokens: int, leave_after: float | None = None, **settings: Any
) -> dict[str, Any]:
    """Stream one reply: {"first", "whole", "tokens"} or {"error"}; {"left"} for a client that leaves."""
    started, first, usage = time.perf_counter(), None, None
    body = {
        "messages": [{"role": "user", "content": text}], "max_tokens": n_tokens, "stream": True,
        "stream_options": {"include_usage": True}, **settings,
    }  # fmt: skip
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return {"error": f"status {response.status_code}"}
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return {"error": event["error"]["message"]}
                usage = event.get("usage") or usage
                if first is None and event["choices"] and event["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - started
                if leave_after is not None and time.perf_counter() - started > leave_after:
                    return {"left": True}
    except httpx.HTTPError as error:
        return {"error": type(error).__name__}
    whole = time.perf_counter() - started
    if usage is None:
        return {"error": "the stream was incomplete"}
    return {"first": first or whole, "whole": whole, "tokens": usage["completion_tokens"]}


async def metric(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"mini_chat_gpt_{name} "))


async def words_of_context(client: httpx.AsyncClient, context: int) -> int:
    """How many words of a prompt fill the context."""
    body = {"messages": [{"role": "user", "content": prompt(random.Random(0), 40)}], "max_tokens": 1}
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    return int(context * 40 / reply["usage"]["prompt_tokens"])


async def load(client: httpx.AsyncClient, n_clients: int, seconds: float, context: int) -> dict[str, Any]:
    """Part 1."""
    n_words_most = await words_of_context(client, context)
    results: list[dict[str, Any]] = []
    end = time.perf_counter() + seconds
    memory: list[tuple[float, float]] = []

    async def one(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() < end:
            n_words = rng.choice([3, min(20, n_words_most // 4), n_words_most // 8, n_words_most // 3])
            leave = rng.uniform(0, 0.5) if rng.random() < 0.2 else None
            results.append(
                await ask(client, prompt(rng, n_words), rng.choice([10, 40, 120]), leave, seed=rng.randrange(999))
            )

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append((time.perf_counter(), await metric(client, "memory_bytes")))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *map(one, range(n_clients)))
    done = [result for result in results if "whole" in result]
    first, last = memory[0][0], memory[-1][0]
    early = max(size for at, size in memory if at - first <= min(60, seconds / 5) + 1)
    late = max(size for at, size in memory if last - at <= min(60, seconds / 5) + 1)
    return {
        "replies": len(done),
        "left": sum("left" in result for result in results),
        "errors": dict(Counter(result["error"] for result in results if "error" in result)),
        "tokens_per_second": sum(result["tokens"] for result in done) / seconds,
        "first_token": percentiles([result["first"] for result in done]),
        "whole": percentiles([result["whole"] for result in done]),
        "memory_early_mb": early / 2**20,
        "memory_late_mb": late / 2**20,
        "memory_growth": late / early - 1,
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95)} if ordered else {}


async def rate(client: httpx.AsyncClient, n_clients: int) -> float:
    """Tokens per second of clients that all send the same short prompt at once; the best of several rounds."""
    best = 0.0
    for turn in range(ROUNDS):
        started = time.perf_counter()
        asked = [
            ask(client, "Once upon a time", REPLY_TOKENS, temperature=1.5, seed=100 * turn + number)
            for number in range(n_clients)
        ]
        replies = await asyncio.gather(*asked)
        best = max(best, sum(reply["tokens"] for reply in replies) / (time.perf_counter() - started))
    return best


def generate_rate(checkpoint: str, n_rows: int) -> float:
    """Tokens per second of `generate` for the same prompts and settings, in this process."""
    from mini_chat_gpt import load_checkpoint
    from mini_chat_gpt.generation.settings import Sampling
    from mini_chat_gpt.generation.text import generate_replies

    model, tokenizer = load_checkpoint(checkpoint)
    best = 0.0
    for turn in range(ROUNDS):
        started = time.perf_counter()
        sampling = Sampling(REPLY_TOKENS, 1.5, seed=100 * turn)
        replies = generate_replies(model, tokenizer, ["Once upon a time"] * n_rows, sampling)
        best = max(best, sum(len(reply.ids) for reply in replies) / (time.perf_counter() - started))
    return best


async def first_tokens(client: httpx.AsyncClient, context: int) -> dict[str, float]:
    """Part 3: seconds to the first token of a prompt of half the context, which no other begins like."""
    counter = iter(range(10**6))

    async def one(delay: float = 0.0) -> float:
        await asyncio.sleep(delay)
        rng = random.Random(f"first {next(counter)} {time.time()}")
        text = " ".join(rng.choice(WORDS) for _ in range(context // 4))
        reply = await ask(client, text, 40, temperature=1.0)
        return float(reply["first"])

    alone = statistics.median([await one() for _ in range(5)])
    spread = statistics.fmean(await asyncio.gather(*(one(number * alone) for number in range(8))))
    together = statistics.fmean(await asyncio.gather(*(one() for _ in range(8))))
    return {"alone": alone, "one_prompt_time_apart": spread / alone, "together": together / (8 * alone)}


async def measure(address: str, arguments: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        [model] = (await client.get("/v1/models")).json()["data"]
        context = model["context_length"]
        await rate(client, 1)  # warm up
        results = {"first_tokens": await first_tokens(client, context)}
        rates = {"one_client": await rate(client, 1), "eight_clients": await rate(client, 8)}
        results["load"] = await load(client, arguments.clients, arguments.seconds, context)
    return results | {"tokens_per_second": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "mini_chat_gpt.cli", "serve", "--port", "0", "--checkpoint", arguments.checkpoint]
    command += ["--prefix-cache", str(PREFIX_MB)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        address = next(line for line in server.stderr if line.startswith("Open ")).split()[1]
        threading.Thread(target=server.stderr.read, daemon=True).start()
        results = asyncio.run(measure(address, arguments))
    finally:
        server.terminate()
        server.wait(60)
    rates = results["tokens_per_second"]
    rates |= {f"generate_{n}": generate_rate(arguments.checkpoint, n) for n in (1, 8)}
    results["ratios"] = {
        "eight clients / generate on 8": rates["eight_clients"] / rates["generate_8"],
        "eight clients / one client": rates["eight_clients"] / rates["one_client"],
        "one client / generate on 1": rates["one_client"] / rates["generate_1"],
    }
    print(json.dumps(results, indent=1))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
