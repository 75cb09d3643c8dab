"""Replies don't depend on each other, share what they read, and leave when their client does."""

import time

import numpy as np
import pytest
import torch
from serve.engine_kit import new_engine, new_reply, run, step_until_ended, text_of, variant_of
from tiny import chat_tokenizer, lively

from mini_chat_gpt.generation import generate
from mini_chat_gpt.generation.decode import for_inference
from mini_chat_gpt.generation.separate_rows import FixedRows, row_decoder
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.serve import engine as engine_module
from mini_chat_gpt.serve.choose import TokenSampler, choose
from mini_chat_gpt.serve.engine import QueueFull, ReplyEngine, ShuttingDown, Variant
from mini_chat_gpt.serve.prefix_cache import BLOCK
from mini_chat_gpt.serve.reply import Asked

CONTEXT = 256
GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True, "qkv_bias": True}


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return lively(tokenizer, context_length=CONTEXT)


@pytest.fixture(scope="module")
def variant(model, tokenizer):
    return variant_of(model, tokenizer)


def random_prompt(length, seed=0):
    return [int(i) for i in np.random.default_rng([length, seed]).integers(0, 250, length)]


def bits(reply):
    """Everything that a client can see of a reply, probabilities included."""
    return [(piece.text, piece.tokens, piece.finish) for piece in reply.pieces]


@pytest.mark.parametrize(
    ("changes", "weights"), [({}, "auto"), ({}, "int8"), ({}, "bf16"), (GPT2, "auto"), ({"qk_norm": True}, "auto")]
)
def test_a_reply_is_the_same_alone_and_among_eight_others(tokenizer, changes, weights):
    variant = variant_of(lively(tokenizer, context_length=CONTEXT, **changes), tokenizer, weights=weights)
    ask = {"n_alternatives": 3}
    alone = new_reply(random_prompt(70), tokenizer, **ask)
    run(new_engine(variant), [alone])

    engine = new_engine(variant)
    others = [
        new_reply(random_prompt(n), tokenizer, Sampling(5 + n % 30, 0.8, top_k=20, seed=n)) for n in range(1, 200, 28)
    ]
    again = new_reply(random_prompt(70), tokenizer, **ask)
    engine.submit(variant, others[:4])
    for _ in range(3):  # others join before it, with it and after it, and leave before it
        engine.step()
    engine.submit(variant, [again, *others[4:]])
    step_until_ended(engine, [again, *others])
    assert alone.finish is not None
    assert alone.usage.n_new > 3
    assert bits(again) == bits(alone)


def test_a_reply_is_the_same_when_its_prompt_is_in_the_prefix_cache(variant, tokenizer):
    engine = new_engine(variant)
    first, second = (new_reply(random_prompt(150), tokenizer, n_alternatives=2) for _ in range(2))
    run(engine, [first])
    run(engine, [second])
    assert second.usage.n_cached == 150 // BLOCK * BLOCK
    assert bits(second) == bits(first)


@pytest.mark.parametrize("n_prompt", [5, 150])
def test_a_reply_that_ends_with_its_first_token_is_not_continued(variant, tokenizer, monkeypatch, n_prompt):
    """The first token is chosen when the prompt has been read, within the step that computes the next token of the other rows."""
    stop_id, letters = min(tokenizer.stop_ids), iter(range(65, 300))
    monkeypatch.setattr(
        "mini_chat_gpt.serve.engine.choose",
        lambda _logits, samplers, _: [(stop_id if s.asked.choice else next(letters), None) for s in samplers],
    )
    engine = new_engine(variant)
    other, reply = new_reply(random_prompt(4), tokenizer), new_reply(random_prompt(n_prompt), tokenizer, choice=1)
    run(engine, [other, reply])
    assert [(piece.text, piece.finish) for piece in reply.pieces] == [("", "stop")]
    assert reply.usage.n_new == 0
    assert engine.n_ended == {"stop": 1, "length": 1}


def test_replies_equal_those_of_generate(model, variant, tokenizer):
    prompts = ["Once", "Sara had a red ball", "little cat"]
    settings = {"max_new_tokens": 15, "temperature": 0.9, "top_p": 0.9, "seed": 4}
    from mini_chat_gpt.generation.text import prompt_ids

    replies = [new_reply(prompt_ids(tokenizer, text), tokenizer, Sampling(**settings)) for text in prompts]
    run(new_engine(variant), replies)
    assert [text_of(reply) for reply in replies] == [
        generate(model, tokenizer, [text], **settings)[0] for text in prompts
    ]


def test_a_prefix_that_eight_requests_share_is_read_once(variant, tokenizer):
    engine = new_engine(variant)
    prefix = random_prompt(4 * BLOCK)
    replies = [new_reply([*prefix, 1, 2, number], tokenizer) for number in range(8)]
    run(engine, replies)
    assert engine.n_tokens_read == 4 * BLOCK + 8 * 3
    assert engine.n_tokens_cached == 7 * 4 * BLOCK
    assert engine.n_prompt_tokens == 8 * (4 * BLOCK + 3)


def test_the_prefix_cache_keeps_within_its_bound_and_drops_what_is_oldest(variant, tokenizer):
    table = variant.model.make_cache(1, BLOCK).table.nbytes
    engine = new_engine(variant, prefix_bytes=5 * table)
    for seed in range(4):
        run(engine, [new_reply(random_prompt(3 * BLOCK, seed), tokenizer)])
        assert engine.prefixes.n_bytes == len(engine.prefixes) * table <= 5 * table
    newest, oldest = (new_reply(random_prompt(3 * BLOCK, seed), tokenizer) for seed in (3, 0))
    run(engine, [newest])
    assert newest.usage.n_cached == 2 * BLOCK
    run(engine, [oldest])
    assert oldest.usage.n_cached == 0


def test_a_prefix_cache_of_no_size_keeps_nothing(variant, tokenizer):
    engine = new_engine(variant, prefix_bytes=0)
    replies = [new_reply(random_prompt(100), tokenizer) for _ in range(2)]
    run(engine, replies)
    assert engine.n_tokens_read == 200
    assert not len(engine.prefixes)


@pytest.mark.parametrize("when", ["queued", "reading", "running"])
def test_a_canceled_reply_leaves_within_two_steps_and_changes_no_other(variant, tokenizer, monkeypatch, when):
    monkeypatch.setattr("mini_chat_gpt.serve.engine.READ_SECONDS", 0.0)  # one block in each step
    alone = new_reply(random_prompt(40), tokenizer)
    run(new_engine(variant), [alone])

    engine = new_engine(variant, max_rows=2)
    stays = new_reply(random_prompt(40), tokenizer)
    leaves = new_reply(random_prompt(200, seed=1), tokenizer)
    blocker = new_reply(random_prompt(3), tokenizer)
    engine.submit(variant, [stays, blocker, leaves] if when == "queued" else [stays, leaves])
    engine.step()
    engine.step()
    if when == "running":
        while not leaves.pieces:
            engine.step()
    assert [row.reply for row in engine.rows][-1] is (blocker if when == "queued" else leaves)
    leaves.cancel()
    before = engine.n_steps
    while leaves.finish is None:
        engine.step()
    assert engine.n_steps - before <= 2
    assert leaves.finish == "canceled"
    assert leaves not in [row.reply for row in engine.rows]
    step_until_ended(engine, [stays])
    assert bits(stays) == bits(alone)


def test_running_replies_go_on_while_a_long_prompt_is_read(variant, tokenizer, monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.serve.engine.READ_SECONDS", 0.0)
    engine = new_engine(variant)
    running = new_reply([1, 2, 3], tokenizer, Sampling(40, 1.0, seed=1))
    engine.submit(variant, [running])
    engine.step()
    waiting = new_reply(random_prompt(7 * BLOCK), tokenizer)
    engine.submit(variant, [waiting])
    for _ in range(6):
        before = running.usage.n_new
        engine.step()
        assert running.usage.n_new == before + 1 or running.finish
        assert waiting.usage.n_new == 0


def test_the_queue_is_bounded_and_shutting_down_ends_what_waits(variant, tokenizer):
    engine = new_engine(variant, max_rows=1, max_queue=2)
    replies = [new_reply([1, 2], tokenizer) for _ in range(3)]
    engine.submit(variant, replies)
    with pytest.raises(QueueFull):
        engine.submit(variant, [new_reply([1], tokenizer)])
    engine.step()
    engine.shut_down()
    assert [reply.finish for reply in replies[1:]] == ["shutdown"] * 2
    with pytest.raises(ShuttingDown):
        engine.submit(variant, [new_reply([1], tokenizer)])
    step_until_ended(engine, replies)
    assert replies[0].finish in ("stop", "length")


def test_a_reply_ends_at_its_time_limit(variant, tokenizer):
    engine = new_engine(variant)
    reply = new_reply([1, 2], tokenizer, seconds=0.0)
    run(engine, [reply])
    assert reply.finish == "timeout"


UNKNOWN = 10**6
"""An id that the model does not have, so that reading it fails; with a repetition penalty, already when it is counted."""


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_a_prompt_that_can_not_be_read_ends_no_other_reply(variant, tokenizer, penalty):
    alone = new_reply([1, 2], tokenizer)
    run(new_engine(variant), [alone])
    failures = []
    engine = new_engine(variant, on_error=failures.append)
    running, waiting = (new_reply([1, 2], tokenizer) for _ in range(2))
    broken = new_reply([1, 2, UNKNOWN], tokenizer, Sampling(5, 1.0, repetition_penalty=penalty))
    engine.submit(variant, [running])
    engine.step()
    engine.submit(variant, [broken, waiting])
    step_until_ended(engine, [running, broken, waiting])
    assert bits(running) == bits(waiting) == bits(alone)
    assert [(piece.text, piece.finish) for piece in broken.pieces] == [("", "error")]
    assert len(failures) == engine.n_ended["error"] == 1
    assert "Traceback" in failures[0]


def test_a_failing_step_of_one_model_ends_the_replies_of_no_other_one(model, tokenizer, monkeypatch):
    variants = [Variant.of(for_inference(model), tokenizer, 8, number) for number in range(2)]
    engine = ReplyEngine(variants, on_error=lambda _: None)
    ended, fine, broken = (new_reply([1, 2], tokenizer, Sampling(n, 1.0, seed=5)) for n in (2, 9, 9))
    engine.submit(variants[0], [ended, fine])
    engine.submit(variants[1], [broken])
    # The first step adds two tokens, after which `ended` is long enough. In the same step the other model fails.
    monkeypatch.setattr(variants[1].decoder, "next_logits", lambda *_: 1 / 0)
    step_until_ended(engine, [ended, fine, broken])
    assert [[p.finish for p in reply.pieces if p.finish] for reply in (ended, broken)] == [["length"], ["error"]]
    assert fine.finish in ("stop", "length")
    assert engine.n_ended.total() == 3


def test_the_engine_goes_on_after_a_step_that_fails_as_a_whole(variant, tokenizer, monkeypatch):
    failures = []
    engine = new_engine(variant, on_error=failures.append)
    broken, fine = new_reply([1, 2], tokenizer), new_reply([1, 2], tokenizer)
    monkeypatch.setattr(engine, "_read", lambda: 1 / 0)
    engine.start()
    engine.submit(variant, [broken])
    wait_for(lambda: broken.finish and not engine.queue)
    monkeypatch.undo()
    engine.submit(variant, [fine])
    wait_for(lambda: fine.finish)
    engine.close()
    assert broken.finish == "error"
    assert "ZeroDivisionError" in failures[0]
    assert fine.finish in ("stop", "length")
    assert engine.n_ended.total() == 2


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_canceling_all_ends_a_reply_that_is_being_admitted(variant, tokenizer, monkeypatch):
    engine = new_engine(variant)
    reply = new_reply([1, 2], tokenizer)
    made = engine_module._Row

    def row(*arguments):
        engine.shut_down()
        engine.cancel_all()
        return made(*arguments)

    monkeypatch.setattr(engine_module, "_Row", row)
    engine.submit(variant, [reply])
    engine.step()
    engine.step()
    assert reply.finish == "canceled"


def test_a_stop_string_in_what_is_held_back_to_the_end_is_a_stop(tokenizer):
    """The beginning of a character that does not become complete is shown as U+FFFD."""
    reply = new_reply([1], tokenizer, stop=("\ufffd",))
    assert not reply.push(tokenizer.encode("é")[0], None)
    assert reply.end("length") == reply.finish == "stop"
    assert text_of(reply) == ""


def test_stop_strings_end_a_reply_before_them(variant, tokenizer):
    whole = new_reply(random_prompt(12), tokenizer)
    run(new_engine(variant), [whole])
    text = text_of(whole)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = new_reply(random_prompt(12), tokenizer, stop=(stop,), n_alternatives=0)
    run(new_engine(variant), [cut])
    assert text_of(cut) == text[: text.index(stop)]
    assert cut.finish == "stop"
    tokens = [token.token_id for piece in cut.pieces for token in piece.tokens]
    assert tokenizer.decode(tokens).startswith(text_of(cut))


@pytest.mark.parametrize(
    ("penalties", "expected"),
    [
        ({}, [5, 5, 5, 5]),
        ({"presence_penalty": 1.5}, [5, 6, 5, 5]),  # 10 → 8.5, then 9 → 7.5
        ({"frequency_penalty": 0.6}, [5, 5, 6, 5]),  # 10 → 9.4 → 8.8 < 9; then 9 → 8.4
    ],
)
def test_penalties_count_the_tokens_of_the_reply(tokenizer, penalties, expected):
    sampler = TokenSampler(Asked(Sampling(temperature=0), **penalties), [5, 5, 5], 0, 300, tokenizer)
    logits = torch.zeros(1, 300)
    logits[0, 5], logits[0, 6] = 10.0, 9.0
    none = torch.tensor([], dtype=torch.int64)
    assert [choose(logits.clone(), [sampler], none)[0][0] for _ in expected] == expected


def test_log_probabilities_are_those_of_the_model(model, variant, tokenizer):
    prompt = random_prompt(20)
    reply = new_reply(prompt, tokenizer, n_alternatives=4)
    run(new_engine(variant), [reply])
    tokens = [token for piece in reply.pieces for token in piece.tokens]
    ids = [*prompt, *(token.token_id for token in tokens)]
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    for row, token in zip(expected, tokens, strict=True):
        assert token.log_probability == pytest.approx(float(row[token.token_id]), abs=1e-4)
        assert [token_id for token_id, _ in token.alternatives] == row.topk(4).indices.tolist()


@pytest.mark.parametrize("changes", [{}, GPT2, {"qk_norm": True, "windows": (8, None)}])
def test_the_form_for_gpus_computes_the_same_model(tokenizer, changes):
    model = lively(tokenizer, context_length=CONTEXT, **changes)
    prompts = [random_prompt(n) for n in (5, 30, 17)]
    results = []
    for decoder in (FixedRows(model, 4), row_decoder(for_inference(model, 1), 4)):
        caches = [model.make_cache(1) for _ in prompts]
        for ids, cache in zip(prompts, caches, strict=True):
            model.next_logits(torch.tensor([ids]), cache, [len(ids)])
        results.append([decoder.next_logits([3, 4, 5], caches) for _ in range(4)][-1])
    torch.testing.assert_close(*results, atol=2e-4, rtol=1e-4)
