"""Which chats are held out, and which are equal: by digests of their texts."""

import hashlib
import json
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.data.chat_split import KEY, content_key, held_out_part, is_in, prompt_key, repeated


def chat(question: str, reply: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", reply)), "messages", "a.jsonl", "line 1")


def keys_of(chats, key=content_key) -> np.ndarray:
    return np.array([key(one) for one in chats], dtype=KEY)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.6), st.integers(0, 9))
def test_the_split_depends_on_the_texts_only_and_its_parts_are_disjoint(numbers, share, seed):
    keys = keys_of(chat("Hi", f"a {k}") for k in numbers)
    held = held_out_part(keys, share, seed)
    assert not {*keys[held].tolist()} & {*keys[~held].tolist()}
    again = np.concatenate([keys[::-1], keys[:3]])
    assert {*again[held_out_part(again, share, seed)].tolist()} == {*keys[held].tolist()}
    different = len(set(numbers))
    assert len({*keys[held].tolist()}) == min(different - 1, max(1, round(share * different)))


@given(st.lists(st.integers(0, 500), min_size=1, max_size=90), st.floats(0, 0.6), st.integers(0, 2**63))
def test_the_split_is_that_of_earlier_versions(numbers, share, seed):
    def digest(text: str) -> str:
        return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()

    texts = [[["user", "hi"], ["assistant", f"a {k}"]] for k in numbers]
    keys = [digest(json.dumps(one)) for one in texts]
    order = sorted(set(keys), key=lambda key: digest(f"{seed}/{key}"))
    n = min(len(order) - 1, max(1, round(share * len(order)))) if share > 0 else 0
    expected = [key in order[:n] for key in keys]
    assert held_out_part(keys_of(chat("Hi", f"a  {k}") for k in numbers), share, seed).tolist() == expected


@given(st.lists(st.binary(min_size=12, max_size=12) | st.sampled_from([bytes(12), b"a" + bytes(11)]), max_size=40))
def test_digests_with_zeros_are_compared_as_a_whole(digests):
    keys = np.array(digests, dtype=KEY)
    assert repeated(keys).tolist() == [digests.index(one) for one in digests]
    part, rest = digests[:10], digests[10:]
    assert is_in(keys[:10], keys[10:]).tolist() == [one in rest for one in part]


def test_duplicates_are_found_regardless_of_case_and_spacing():
    chats = [chat("Hi", "Hello!"), chat("Hi", "No."), chat("hi ", "  hello!"), chat("Bye", "Bye!")]
    assert repeated(keys_of(chats)).tolist() == [0, 1, 0, 3]
    trained, held_out = [chats[0], chats[3]], [chats[1], chats[2]]
    assert is_in(keys_of(held_out), keys_of(trained)).tolist() == [False, True]
    assert is_in(keys_of(held_out, prompt_key), keys_of(trained, prompt_key)).tolist() == [True, True]


def test_conversations_that_differ_in_reasoning_or_calls_are_not_duplicates():
    plain = chat("Hi", "Hello!")
    thinks = replace(plain, messages=(plain.messages[0], replace(plain.messages[1], reasoning="Hm.")))
    assert content_key(plain) != content_key(thinks)
    assert content_key(thinks) == content_key(replace(thinks, place="line 3"))


def test_without_a_share_nothing_is_held_out():
    assert not held_out_part(keys_of(chat("Hi", f"a {k}") for k in range(5)), 0.0, 1).any()
