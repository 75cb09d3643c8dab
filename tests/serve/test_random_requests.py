"""Whatever joins, leaves, stops or fails, and when: every reply gets exactly one end, as its last piece, and the counts add up."""

import asyncio
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import get_args

import httpx
import torch
from serve.engine_kit import new_reply, step_until_ended, text_of
from serve.server_kit import running, tiny_models
from tiny import chat_tokenizer, tiny_model

from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.ops.kv_cache import KVCache
from mini_chat_gpt.serve.engine import QueueFull, ReplyEngine, ShuttingDown, Variant
from mini_chat_gpt.serve.reply import Finish

TOKENIZER = chat_tokenizer()
CONFIG = tiny_model(TOKENIZER.vocab_size, context_length=100).config
TOKENS = [*TOKENIZER.encode("abcabc"), *TOKENIZER.encode("é"), min(TOKENIZER.stop_ids)]


class RandomModel:
    """Predicts random tokens, and fails once where it is told to. It is its own decoder of rows."""

    config, device, max_rows = CONFIG, torch.device("cpu"), 3

    def __init__(self, seed: int) -> None:
        self.rng, self.failing = Random(seed), set()

    def fail_if_due(self, where):
        if where in self.failing:
            self.failing.remove(where)
            raise RuntimeError(f"the {where} fails")

    def make_cache(self, batch_size, max_length=1):
        self.fail_if_due("cache")
        return KVCache(1, batch_size, 1, max_length, 1)

    def read(self, cache, n_tokens):
        assert cache.lengths[0] + n_tokens <= cache.max_length
        cache.advance([n_tokens])
        logits = torch.zeros(1, CONFIG.vocab_size)
        logits[0, self.rng.choice(TOKENS)] = 1
        return logits


class Prompts(RandomModel):
    def next_logits(self, ids, cache, n_tokens):
        self.fail_if_due("prompt")
        return self.read(cache, n_tokens[0])


class Rows(RandomModel):
    def next_logits(self, ids, caches):
        self.fail_if_due("step")
        return torch.cat([self.read(cache, 1) for cache in caches])


def random_variants(seed):
    return [Variant(Prompts(seed), Rows(seed + 1), TOKENIZER, number) for number in range(2)]


def random_reply(rng, variant, **asked):
    """A reply with random settings, whose pieces are kept; the receiver of one piece may fail."""
    sampling = Sampling(rng.choice([1, 2, 7, 300]), 0, repetition_penalty=rng.choice([1.0, 1.2]))
    prompt = [rng.choice([1, 2]) for _ in range(rng.choice([1, 5, 32, 33, 64, 70, 99]))]
    reply = new_reply(
        prompt, TOKENIZER, replace(sampling, max_new_tokens=min(sampling.max_new_tokens, 100 - len(prompt))),
        stop=tuple(rng.choices(["ab", "c", "é", "bca"], k=rng.choice([0, 0, 1, 2]))), n_alternatives=rng.choice([None, 1]),
        seconds=1000.0, **asked,
    )  # fmt: skip
    keep = reply._emit

    def emit(piece):
        if piece.text and piece.finish is None:
            variant.model.fail_if_due("piece")
        keep(piece)

    reply._emit = emit
    return reply


def check(reply):
    """What holds for a reply at any time."""
    ends = [piece.finish for piece in reply.pieces if piece.finish is not None]
    assert ends == ([reply.finish] if reply.finish else [])
    if reply.finish is None:
        return
    assert reply.pieces[-1].finish == reply.finish
    asked, n_new = reply.asked, reply.usage.n_new
    assert n_new <= asked.sampling.max_new_tokens
    assert not any(stop in text_of(reply) for stop in asked.stop)
    if reply.finish == "length":
        assert n_new == asked.sampling.max_new_tokens
    if reply.finish in ("stop", "length") and not asked.stop and asked.n_alternatives is not None:
        assert sum(len(piece.tokens) for piece in reply.pieces) == n_new


class Scenario:
    """An engine, and all replies that it has accepted."""

    def __init__(self, seed):
        self.rng, self.failures, self.replies = Random(seed), [], []
        self.variants = random_variants(seed)
        self.engine = ReplyEngine(
            self.variants, max_rows=3, max_queue=4, prefix_bytes=2000, row_bytes=1500, on_error=self.failures.append
        )

    def submit(self):
        variant = self.rng.choice(self.variants)
        replies = [random_reply(self.rng, variant, choice=choice) for choice in range(self.rng.choice([1, 1, 2, 4]))]
        with suppress(QueueFull, ShuttingDown):
            self.engine.submit(variant, replies)
            self.replies += replies

    def step(self):
        self.engine.step()
        assert all(row.reply.finish is None for row in self.engine.rows)

    def leave(self):
        if self.replies:
            reply = self.rng.choice(self.replies[-6:])
            if self.rng.random() < 0.5:
                reply.usage.asked -= 5000  # its time is over
            else:
                reply.cancel()

    def fail(self):
        """One of the next calls of its kind fails."""
        variant, where = self.rng.choice(self.variants), self.rng.choice(["cache", "prompt", "step", "piece"])
        (variant.decoder if where == "step" else variant.model).failing.add(where)

    def check(self):
        engine = self.engine
        for reply in self.replies:
            check(reply)
        open_ones = [reply for reply in self.replies if reply.finish is None]
        held = [reply for reply, _ in engine.queue] + [row.reply for row in engine.rows]
        assert sorted(map(id, held)) == sorted(map(id, open_ones))
        assert len(engine.rows) <= engine.max_rows
        assert engine.n_ended == Counter(reply.finish for reply in self.replies if reply.finish)
        assert engine.n_tokens_generated == sum(reply.usage.n_new for reply in self.replies)
        assert engine.n_tokens_read + engine.n_tokens_cached <= engine.n_prompt_tokens
        assert len(self.failures) <= engine.n_ended["error"]


def test_every_reply_ends_once_whatever_happens_between_steps():
    ends = Counter()
    for seed in range(20):
        scenario = Scenario(seed)
        actions = scenario.submit, scenario.step, scenario.leave, scenario.fail
        for _ in range(80):
            scenario.rng.choices(actions, weights=[4, 12, 1, 1])[0]()
            scenario.check()
        if seed % 2:
            scenario.engine.shut_down()
        if seed % 4 == 3:
            scenario.engine.cancel_all()
        step_until_ended(scenario.engine, scenario.replies)
        scenario.check()
        assert not scenario.engine.rows
        ends += scenario.engine.n_ended
    assert set(ends) == set(get_args(Finish))


def test_replies_end_once_while_threads_submit_cancel_and_shut_down():
    for seed in range(4):
        variants, accepted = random_variants(seed), []
        engine = ReplyEngine(variants, max_rows=3, max_queue=20, on_error=lambda _: None)

        def client(number, seed=seed, variants=variants, engine=engine, accepted=accepted):
            rng = Random(f"{seed} {number}")
            for _ in range(25):
                variant = rng.choice(variants)
                if rng.random() < 0.1:
                    variant.model.failing.add(rng.choice(["cache", "prompt", "piece"]))
                replies = [random_reply(rng, variant, choice=choice) for choice in range(rng.choice([1, 1, 3]))]
                try:
                    engine.submit(variant, replies)
                except (QueueFull, ShuttingDown):
                    continue
                accepted.extend(replies)
                if rng.random() < 0.4:
                    rng.choice(replies).cancel()
                    engine.wake()

        engine.start()
        threads = [threading.Thread(target=client, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        if seed % 2:
            engine.shut_down()
        for thread in threads:
            thread.join()
        engine.close()
        assert accepted or seed % 2
        for reply in accepted:
            check(reply)
        assert engine.n_ended == Counter(reply.finish for reply in accepted)
        assert not engine.rows


def test_every_request_is_counted_once_and_its_rows_are_free_whatever_its_client_does():
    async def client(http, number):
        rng = Random(number)
        n, stream = rng.choice([1, 1, 3]), rng.random() < 0.6
        body = {
            "model": "tiny", "messages": [{"role": "user", "content": "Hi " * rng.choice([1, 30])}], "n": n, "stream": stream,
            "max_tokens": rng.choice([1, 3, 60]), "seed": number, "temperature": 2.0, "stop": rng.choice([None, "a", ["e", " "]]),
        }  # fmt: skip
        n_parts = rng.choice([0, 1, 3, 10**6])
        try:
            async with http.stream(
                "POST", "/v1/chat/completions", json=body, timeout=rng.choice([0.02, 60])
            ) as response:
                assert response.status_code in (200, 429)
                if response.status_code == 429:
                    return 0, 0
                async for _ in response.aiter_raw():
                    if n_parts == 0:
                        return n, 0
                    n_parts -= 1
                return n, n
        except httpx.TimeoutException:
            return None

    async def main(address):
        async with httpx.AsyncClient(base_url=address) as http:
            return await asyncio.gather(*(client(http, number) for number in range(40)))

    with running(tiny_models(max_rows=4, max_queue=20)) as (address, server):
        results = asyncio.run(main(address))
        engine = server.engines[0]
        deadline = time.monotonic() + 60
        while engine.rows or engine.queue or len(server.http.server_state.tasks):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        counts = Counter()
        for (_, finish), n in server.metrics._ended.items():
            counts[finish] += n
        assert sum(counts.values()) == sum(engine.n_ended.values())
        assert set(engine.n_ended) <= {"stop", "length", "canceled"}
        whole, known = sum(r[1] for r in results if r), sum(r[0] for r in results if r)
        assert known <= sum(counts.values())
        assert whole <= counts["stop"] + counts["length"]
        assert whole > 0
