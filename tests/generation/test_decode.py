"""The decoding loop equals a plain loop without a cache; suppressed tokens are never sampled."""

import pytest
import torch
from tiny import GREEDY, PROMPTS, chat_tokenizer, lively, tiny_model, tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.decode import decode, random_streams, suppressed_tokens
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import generate, generate_replies, prompt_ids
from mini_chat_gpt.model import GPT
from mini_chat_gpt.ops.kv_cache import Cached
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


@pytest.fixture(scope="module")
def base() -> ChatTokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def chat() -> ChatTokenizer:
    return chat_tokenizer()


def decode_alone(model: GPT, tokenizer: ChatTokenizer, ids: list[int], sampling: Sampling, **more) -> tuple[int, ...]:
    """The ids of a single row, the stop token included."""
    streams = random_streams(sampling.seed or 0, [more.pop("number", 0)])
    return tuple(step.token_id for step in decode(model, tokenizer, [ids], sampling, streams, **more))


def uncached_argmax(model: GPT, tokenizer: ChatTokenizer, ids: list[int], n: int) -> list[int]:
    """A greedy loop without a cache: the whole sequence goes through the model for every token."""
    suppressed, reply = suppressed_tokens(tokenizer, model.config.vocab_size), []
    with torch.no_grad():
        while len(reply) < n and len(ids) < model.config.context_length:
            token_id = int(model(torch.tensor([ids]))[0, -1].index_fill(0, suppressed, float("-inf")).argmax())
            if token_id in tokenizer.stop_ids:
                break
            ids, reply = [*ids, token_id], [*reply, token_id]
    return reply


@pytest.mark.parametrize("chunk_tokens", [1, 7, 10_000])
@pytest.mark.parametrize("window", [None, 3])
def test_the_chunk_size_of_prefill_does_not_change_replies(base, monkeypatch, chunk_tokens, window):
    monkeypatch.setattr("mini_chat_gpt.generation.decode.PREFILL_TOKENS_CPU", chunk_tokens)
    model = lively(base, windows=[window, None])
    alone = [generate_replies(model, base, [prompt], GREEDY)[0] for prompt in PROMPTS]
    assert generate_replies(model, base, PROMPTS, GREEDY) == alone


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_replies_equal_an_uncached_argmax_loop(base, seed):
    model = lively(base, seed=seed)
    replies = generate_replies(model, base, PROMPTS, GREEDY)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert list(reply.ids) == uncached_argmax(model, base, prompt_ids(base, prompt), 20)
    assert len({reply.ids for reply in replies}) > 3, "the replies of this model are too similar to test anything"


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(max_new_tokens=20, temperature=1.0, seed=5),
        Sampling(max_new_tokens=20, temperature=1.5, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=6),
    ],
    ids=["greedy", "sampled", "all filters"],
)
def test_a_reply_does_not_depend_on_the_rest_of_the_batch(base, sampling):
    model = lively(base)
    replies = generate_replies(model, base, PROMPTS, sampling, batch_size=len(PROMPTS))
    assert replies == generate_replies(model, base, PROMPTS, sampling, batch_size=1)
    assert replies == generate_replies(model, base, PROMPTS, sampling, batch_size=4)
    for number, prompt in enumerate(PROMPTS):
        alone = decode_alone(model, base, prompt_ids(base, prompt), sampling, number=number)
        assert tuple(token_id for token_id in alone if token_id not in base.stop_ids) == replies[number].ids


def test_rows_that_fill_the_context_do_not_end_the_others(base):
    model = lively(base)
    prompts = ["a" * 50, "b", "c" * 30]
    replies = generate_replies(model, base, prompts, Sampling(max_new_tokens=40, temperature=0))
    for prompt, reply in zip(prompts, replies, strict=True):
        assert list(reply.ids) == uncached_argmax(model, base, prompt_ids(base, prompt), 40)


def test_padding_rows_and_control_tokens_other_than_stop_tokens_are_never_sampled(base):
    model = lively(base, padding=200)
    roles = {base.control[f"<|{role}|>"] for role in ("system", "user", "assistant")}
    with torch.no_grad():  # make these tokens by far the most likely ones
        for unwanted in [*roles, *range(base.vocab_size, base.vocab_size + 200)]:
            model.embed_tokens.weight[unwanted] *= 30
    sampling = Sampling(max_new_tokens=40, temperature=3.0, seed=0)
    ids = {token_id for reply in generate_replies(model, base, PROMPTS, sampling) for token_id in reply.ids}
    assert ids
    assert not ids & roles
    assert max(ids) < base.vocab_size


def test_a_tokenizer_larger_than_the_models_table_is_rejected(base):
    size = base.vocab_size
    with pytest.raises(UserError, match=f"{size} ids, but the model's table has only {size - 1} rows"):
        generate(tiny_model(size - 1), base, ["Once"])


def test_a_cache_that_holds_the_beginning_of_the_prompt_is_continued(chat):
    model, cache = lively(chat), lively(chat).make_cache(1)
    first = prompt_ids(chat, "Hi")
    reply = decode_alone(model, chat, first, GREEDY, cache=cache)
    longer = [*first, *reply, *chat.encode("and then")]
    assert cache.lengths == [len(first) + len(reply) - 1]  # the last token was never read
    assert decode_alone(model, chat, longer, GREEDY, cache=cache) == decode_alone(model, chat, longer, GREEDY)


def test_rows_of_different_lengths_reach_the_last_position_of_the_context():
    starts = (61, 60)
    cached = Cached(None, starts, torch.tensor(starts)[:, None])
    assert cached.at_new_positions(torch.arange(64), 3).tolist() == [[61, 62, 63], [60, 61, 62]]
    assert cached.at_new_positions(torch.arange(64), 4)[1].tolist() == [60, 61, 62, 63]  # the other row ends in padding
