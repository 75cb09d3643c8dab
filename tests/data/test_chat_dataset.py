"""Chats as training examples: replies are never cut, files are mixed by weight, held-out chats are never trained on."""

from collections import Counter

import numpy as np
import pytest
from chat_template_samples import reasoning_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data.chat_cache import render_conversations
from mini_chat_gpt.data.chat_dataset import ChatDataset, names_of, nearest_prompts
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TOKENIZER = tiny_tokenizer()


def chat(*texts: str, path: str = "a.jsonl", line: int = 1, system: str | None = None) -> Conversation:
    """User and assistant alternate."""
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    return Conversation((*([Message("system", system)] if system else []), *messages), "messages", path, f"line {line}")


def dataset(
    chats, seq_len=100, seed=1, train="all", weights=None, too_long="cut", tokenizer=TOKENIZER, **data
) -> ChatDataset:
    data_section = DataSection(seq_len=seq_len, **data)
    section = ChatsSection(files=weights or {}, train=train, too_long=too_long)
    return ChatDataset(render_conversations(chats, tokenizer, section, data_section), section, data_section, seed)


def reasons(source: ChatDataset) -> list[str]:
    """Why chats are not used as they are."""
    return [why for chat in range(len(source.rendered.chats)) if (why := source.rendered.text(chat)[1])]


def test_an_example_is_the_rendered_conversation():
    conversation = chat("Hi", "Hello!", "Bye", "Bye!")
    source = dataset([conversation])
    ids, trained = render(conversation.messages, TOKENIZER)
    example = source[7]
    assert example.ids.tolist() == ids
    assert example.loss_mask.tolist() == trained
    assert (example.kind, example.weight) == ("a", 1.0)
    assert reasons(source) == []


def test_training_can_be_limited_to_the_last_reply():
    source = dataset([chat("Hi", "Hello!", "Bye", "Bye!")], train="last")
    example = source[0]
    assert TOKENIZER.decode(example.ids[example.loss_mask][:-1].tolist()) == "Bye!"


def test_a_prompt_weight_makes_the_prompt_a_target():
    example = dataset([chat("Hi", "Hello!")], prompt_weight=0.25)[0]
    _, trained = render([Message("user", "Hi"), Message("assistant", "Hello!")], TOKENIZER)
    assert example.weight.tolist() == [1.0 if one else 0.25 for one in trained]
    assert example.loss_mask[1:].all()


def test_a_system_message_begins_chats_that_have_none():
    chats = [chat("Hi", "Hello!"), chat("Hi", "Hello!", system="Be brief.")]
    source = dataset(chats, system_message="Be kind.")
    texts = {TOKENIZER.decode(example.ids.tolist()) for example in source.examples()}
    assert {("Be kind." in text, "Be brief." in text) for text in texts} == {(True, False), (False, True)}


def test_it_is_an_error_if_no_chat_is_left():
    with pytest.raises(
        UserError,
        match=r"No conversation of a.jsonl is left: the shortest has 169 tokens, and 60 fit; .* data.seq_len=256",
    ):
        dataset([chat("Hi " * 80, "Hello!")], 60)
    with pytest.raises(UserError, match="the files contain none"):
        dataset([], 60)


def drawn(source: ChatDataset, indices: range) -> Counter[tuple[str, str]]:
    examples = [source[index] for index in indices]
    return Counter((e.kind, TOKENIZER.decode(e.ids[e.loss_mask][:-1].tolist())) for e in examples)


@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    weight=st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_files_are_mixed_by_weight_and_their_chats_are_equally_frequent(n, m, weight, seed):
    chats = [chat("Hi", f"a {k}", path="a.jsonl") for k in range(n)] + [
        chat("Hi", f"b {k}", path="b.jsonl") for k in range(m)
    ]
    source = dataset(chats, seed=seed, weights={"b.jsonl": weight})
    of_b = max(1, round(m * weight))
    assert len(source) == n + of_b
    epochs = 6
    seen = drawn(source, range(len(source) * epochs))
    assert all(seen["a", f"a {k}"] == epochs for k in range(n))
    times = [seen["b", f"b {k}"] for k in range(m)]
    assert sum(times) == epochs * of_b
    assert max(times) - min(times) <= 1


def test_epochs_differ_in_order_and_repeat_exactly():
    chats = [chat("Hi", f"a {k}") for k in range(20)]
    one, two = (dataset(chats, seed=3) for _ in range(2))
    orders = [[one[index].ids.tolist() for index in range(20 * epoch, 20 * epoch + 20)] for epoch in range(2)]
    assert orders[0] != orders[1]
    assert [two[index].ids.tolist() for index in range(20)] == orders[0]


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.3, 1.0, 2.5]), min_size=4, max_size=4),
    seed=st.integers(0, 2**62),
)
@settings(max_examples=30, deadline=None)
def test_the_order_is_that_of_earlier_versions(sizes, weights, seed):
    def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed % 2**64, epoch]).permutation(n)

    chats = [chat("Hi", f"{file} {n}", path=f"{file}.jsonl") for file, size in enumerate(sizes) for n in range(size)]
    source = dataset(chats, seed=seed, weights={f"{file}.jsonl": weight for file, weight in enumerate(weights)})
    per_epoch = [max(1, round(size * weight)) for size, weight in zip(sizes, weights, strict=False)]
    ends = np.cumsum(per_epoch)
    assert len(source) == ends[-1]
    for index in range(3 * len(source)):
        epoch, position = divmod(index, len(source))
        place = int(permutation(len(source), seed, epoch)[position])
        file = int(np.searchsorted(ends, place, side="right"))
        n_before = epoch * per_epoch[file] + place - int(ends[file] - per_epoch[file])
        file_epoch, position = divmod(n_before, sizes[file])
        n = permutation(sizes[file], seed + file + 1, file_epoch)[position]
        example = source[index]
        assert TOKENIZER.decode(example.ids[example.loss_mask][:-1].tolist()) == f"{file} {n}"


def test_an_example_names_its_file_and_place():
    source = dataset([chat("Hi", "Hello!", line=7), chat(*["a text"] * 12, line=8)], 40)
    assert {example.origin for example in source.examples()} == {"a.jsonl, line 7", "a.jsonl, line 8"}
    assert len(source) > 2


def test_the_sizes_of_a_files_examples_are_known_without_reading_them():
    chats = [chat("Hi", "Hello! " * n, path=f"{n % 2}.jsonl") for n in range(1, 6)]
    source = dataset(chats)
    of_files = [row for file in source.files for row in source.sizes(file).tolist()]
    assert of_files == [[len(one.ids), one.n_trained, one.n_trained] for one in source.examples()]


def test_a_dataset_takes_few_bytes_for_each_example():
    source = dataset([chat("Hi", "Hello!")] * 2000)
    source[0]
    kept = [source._order._current[1], *(file.bits for file in source.files)]
    assert sum(array.nbytes for array in kept) <= 5 * len(source)


def test_files_of_the_same_name_get_different_names():
    assert names_of(["x/a.jsonl.gz", "y/a.json", "b.jsonl"]) == {
        "x/a.jsonl.gz": "x/a",
        "y/a.json": "y/a",
        "b.jsonl": "b",
    }


def test_ids_and_loss_mask_have_the_dtypes_of_a_batch():
    example = dataset([chat("Hi", "Hello!")])[0]
    assert (example.ids.dtype, example.loss_mask.dtype) == (np.int32, bool)


def test_the_nearest_question_is_the_one_that_shares_most_words():
    chats = [chat("zebra unrelated words", "No."), chat("What is the capital of Japan?", "Tokyo.")]
    ((similarity, prompt, question),) = nearest_prompts(["what is the CAPITAL of France"], chats)
    assert (prompt, question) == ("what is the CAPITAL of France", "What is the capital of Japan?")
    assert similarity == pytest.approx(5 / 7)


# Reasoning and tools


def trained_texts(source: ChatDataset, tokenizer: ChatTokenizer) -> list[str]:
    [example] = source.examples()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], example.loss_mask, [0]]))).tolist()
    return [
        tokenizer.decode(example.ids[a:b].tolist(), control=True) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


@pytest.mark.parametrize("with_tags", [False, True])
def test_each_reply_is_trained_as_the_template_renders_it(with_tags):
    tokenizer = reasoning_tokenizer()
    replies = [("Hello!", "A greeting."), ("Bye!", "They leave.\n\nBye?")]
    messages = []
    for question, (reply, thought) in zip(("Hi", "Bye"), replies, strict=True):
        tagged = Message("assistant", f"<think>\n{thought}\n</think>\n\n{reply}")
        field = Message("assistant", reply, reasoning=thought)
        messages += [Message("user", question), tagged if with_tags else field]
    chats = [Conversation(tuple(messages), "messages", "a.jsonl", "line 1")]
    source = dataset(chats, 200, tokenizer=tokenizer)
    assert trained_texts(source, tokenizer) == [
        "Hello!<|im_end|>",  # the template removes earlier reasoning
        "<think>\nThey leave.\n\nBye?\n</think>\n\nBye!<|im_end|>",
    ]


def test_tags_stay_text_if_the_format_has_no_reasoning():
    tagged = "<think>\nHm.\n</think>\n\nHello!"
    [example] = dataset([chat("Hi", tagged)]).examples()
    assert TOKENIZER.decode(example.ids[example.loss_mask][:-1].tolist()) == tagged


def test_a_reply_of_reasoning_alone_is_left_out():
    chats = [chat("Hi", "<think>Hm.</think>\n"), chat("Hi", "<think> </think>Hello!")]
    tokenizer = reasoning_tokenizer()
    source = dataset(chats, 200, tokenizer=tokenizer)
    assert reasons(source) == ["Message 2 of 2 (role assistant) has no text; add text, or remove the conversation"]
    assert trained_texts(source, tokenizer) == ["Hello!<|im_end|>"]


def test_a_system_message_is_recognized_whatever_text_object_its_role_is():
    system = Message("".join(["sys", "tem"]), "Be brief.")
    chats = [Conversation((system, *chat("Hi", "Hello!").messages), "messages", "a.jsonl", "line 1")]
    (example,) = dataset(chats, system_message="Be kind.").examples()
    assert "Be kind." not in TOKENIZER.decode(example.ids.tolist())
