"""Training examples depend on the data, the seed and the index only; they are balanced and always have a target."""

import pickle
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from mini_chat_gpt import sft_dataloader
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import DataSection
from mini_chat_gpt.prepare.label_stories import label_stories
from mini_chat_gpt.sft_dataloader import (
    InstructDataset,
    RecordIndex,
    generate_tasks,
    parse_record,
    read_records,
    stories,
)
from mini_chat_gpt.tinystories.conversation_dataset import SMALL_TALK_WEIGHT, ConversationDataset
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

NAMES = ["Tom", "Sue", "Ben", "Mia", "Sam", "Amy", "Max", "Lily"]


def record_text(number: int) -> str:
    """A synthetic record. One in twelve has a bad ending, one in two has dialogue."""
    name, thing = NAMES[number % 8], ["ball", "kite", "hat", "cup", "book"][number % 5]
    features = [*(["Dialogue"] if number % 2 else []), "BadEnding" if number % 12 == 0 else "Twist"]
    speech = f'"Where is my {thing}?" {name} said. ' if number % 2 else ""
    return (
        f"Features: {', '.join(features)}\nWords: {thing}, lose, find\nSummary: {name} looks for a {thing} number {number}.\n"
        f"Story:\n\nOnce there was a child named {name}. {name} had {number} toys. {speech}"
        f"{name} was sad because the {thing} was lost. Then {name} went home.\n<|endoftext|>\n"
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "TinyStoriesInstruct-train.txt"
    path.write_text("".join(record_text(number) for number in range(240)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    tokenizer = ChatTokenizer.train(stories(path), 400)
    tokenizer.add_control_tokens()
    return tokenizer


def dataset(path, tokenizer, seed=1, **data) -> InstructDataset:
    return InstructDataset(
        path, tokenizer, DataSection(**{"seq_len": 256, "turns": 1, "answer_weight": 0} | data), seed
    )


@pytest.fixture
def source(path, tokenizer):
    return dataset(path, tokenizer)


def decoded(source, example) -> tuple[str, str]:
    """(the whole example, its targets) as text."""
    ids = example.ids.tolist()
    trained = [id for id, target in zip(ids, example.loss_mask, strict=True) if target]
    return source.tokenizer.decode(ids, control=True), source.tokenizer.decode(trained, control=True)


def same(one, other) -> bool:
    return one.kind == other.kind and np.array_equal(one.weight, other.weight) and np.array_equal(one.ids, other.ids)


def test_an_example_is_a_conversation_whose_answer_is_trained(source):
    everything, trained = decoded(source, source[0])
    assert everything.startswith("<|user|>")
    assert everything.endswith("<|assistant|>" + trained)
    assert trained.endswith("<|endoftext|>")
    assert len(trained) > len("<|endoftext|>")


def test_ids_and_loss_mask_have_the_dtypes_of_a_batch(source):
    example = source[0]
    assert (example.ids.dtype, example.loss_mask.dtype) == (np.int32, np.bool_)


def test_an_index_gives_the_same_example_in_any_order(path, tokenizer, source):
    indices = [5, 700, 3, 241, 5]
    first = [source[index] for index in indices]
    fresh = dataset(path, tokenizer)
    assert all(same(example, fresh[index]) for index, example in reversed(list(zip(indices, first, strict=True))))


def test_a_pickled_dataset_gives_the_same_examples(source):
    copy = pickle.loads(pickle.dumps(source))
    assert all(same(source[index], copy[index]) for index in range(5))


def test_an_epoch_uses_every_record_once(source):
    numbers = Counter(decoded(source, source[index])[0].count(" toys.") for index in range(len(source)))
    assert numbers == {1: 240}
    texts = {
        text[text.index("Once there") : text.index(" toys.")]
        for text in (decoded(source, source[i])[0] for i in range(240))
    }
    assert len(texts) == 240


def test_the_next_epoch_has_another_order_and_other_prompts(source):
    first, second = ([decoded(source, source[index + epoch * 240])[0] for index in range(240)] for epoch in (0, 1))
    assert sum(one == other for one, other in zip(first, second, strict=True)) < 10
    assert len(set(first) & set(second)) < 120


def test_another_seed_gives_other_examples(path, tokenizer, source):
    other = dataset(path, tokenizer, seed=2)
    assert not all(same(source[index], other[index]) for index in range(5))


def test_limit_uses_the_first_records_only(path, tokenizer):
    source = dataset(path, tokenizer, limit=10)
    toys = {int(decoded(source, source[index])[0].split(" toys.")[0].split()[-1]) for index in range(30)}
    assert len(source) == 10
    assert toys == set(range(10))


def test_kinds_have_the_requested_shares(path, tokenizer):
    source = dataset(path, tokenizer, mixture={"words": 3, "summary": 1, "what_happened": 0, "main_character": 0,
                                                             "ending": 0, "dialogue": 0, "why": 0, "moral": 0})  # fmt: skip
    kinds = Counter(source[index].kind for index in range(960))
    assert kinds["words"] / 960 == pytest.approx(0.75, abs=0.05)
    assert kinds["summary"] / 960 == pytest.approx(0.25, abs=0.05)


def test_yes_and_no_are_equally_frequent_even_if_not_in_the_data(path, tokenizer):
    source = dataset(path, tokenizer, mixture={"ending": 0.1, "words": 0.9} | dict.fromkeys(
        ["summary", "what_happened", "main_character", "dialogue", "why", "moral"], 0.0))  # fmt: skip
    answers = Counter(decoded(source, e)[1][:3] for e in map(source.__getitem__, range(2400)) if e.kind == "ending")
    assert answers["Yes"] / sum(answers.values()) == pytest.approx(0.5, abs=0.1)
    assert sum(answers.values()) / 2400 == pytest.approx(0.1, abs=0.03)


def test_the_mixture_knows_its_realized_shares(source):
    assert sum(source.mixture.shares.values()) == pytest.approx(1)
    assert source.mixture.shares["moral"] == 0
    assert source.mixture.shares["words"] > 0.2


def test_turns_of_conversations_have_loss_weights_if_they_are_set(path, tokenizer):
    source = dataset(path, tokenizer, loss_weights={"greeting": 2, "moral": 3})
    assert source.loss_weights["greeting"] == 2
    talks = ConversationDataset.like(source)
    assert {kind: talks.loss_weights[kind] for kind in ("greeting", "thanks", "moral")} == {
        "greeting": 2, "thanks": SMALL_TALK_WEIGHT, "moral": 3,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"'greetin' is not a kind of task; did you mean 'greeting'"):
        dataset(path, tokenizer, loss_weights={"greetin": 2})
    with pytest.raises(UserError, match=r"data.mixture: 'greeting' is not a kind of task"):
        dataset(path, tokenizer, mixture={"greeting": 2})


def test_loss_weights_are_by_kind(path, tokenizer):
    source = dataset(path, tokenizer, loss_weights={"words": 0.25, "summary": 2, "ending": 1})
    weights = {
        example.kind: set(example.weight[example.loss_mask].tolist()) for example in map(source.__getitem__, range(200))
    }
    assert (weights["words"], weights["summary"], weights["ending"]) == ({0.25}, {2.0}, {1.0})


def test_the_end_of_every_reply_has_at_least_the_answer_weight(path, tokenizer):
    source = dataset(path, tokenizer, loss_weights={"summary": 5}, answer_weight=3.0)
    for example in map(source.__getitem__, range(100)):
        assert example.ids[-1] == tokenizer.end_id
        assert example.weight[-1] == (5.0 if example.kind == "summary" else 3.0)


def test_the_first_word_of_an_answer_and_its_name_have_the_answer_weight(path, tokenizer):
    source = dataset(path, tokenizer, loss_weights={"ending": 1, "main_character": 1}, answer_weight=3.0)
    heavy = {}
    for example in map(source.__getitem__, range(200)):
        ids = np.array(example.ids)[example.loss_mask & (np.array(example.weight) == 3.0)]
        heavy[example.kind] = tokenizer.decode(ids.tolist())
    assert heavy["ending"] in ("Yes", "No", "Yes,", "No,")
    assert heavy["main_character"].startswith("The")
    assert heavy["main_character"].split()[-1].strip(".") in NAMES


def test_the_word_yes_or_no_has_the_product_of_both_weights(path, tokenizer):
    source = dataset(path, tokenizer, loss_weights={"ending": 2, "summary": 2}, answer_weight=3.0)
    found = {}
    for example in map(source.__getitem__, range(200)):
        weights = example.weight[example.loss_mask].tolist()
        found[example.kind] = (weights[0], weights[-2], weights[-1])
    assert found["ending"] == (6.0, 2.0, 3.0)
    assert found["summary"] == (3.0, 2.0, 3.0)


def test_the_required_words_of_a_story_have_the_answer_weight(path, tokenizer):
    source = dataset(path, tokenizer, loss_weights={"words": 0.5}, answer_weight=3.0)
    example = next(e for e in map(source.__getitem__, range(200)) if e.kind == "words")
    thing = source.tokenizer.decode(example.ids[example.weight == 3.0].tolist()).split()
    assert set(example.weight[example.loss_mask].tolist()) == {0.5, 3.0}
    assert thing[0] in decoded(source, example)[0].split("\n")[0]


def conversations(path, tokenizer, n=200, **settings):
    source = dataset(path, tokenizer, **{"seq_len": 512} | settings)
    return source, [source[index] for index in range(n)]


def test_more_turns_ask_more_questions_about_one_story(path, tokenizer):
    source, examples = conversations(path, tokenizer, turns=4)
    texts = [decoded(source, example)[0] for example in examples]
    assert max(text.count("<|user|>") for text in texts) == 4
    assert all(text.count("Once there was a child") == 1 for text in texts)
    assert source.stats["turns"] == sum(text.count("<|user|>") for text in texts)


def test_a_prompt_weight_adds_targets_and_does_not_change_the_answers(path, tokenizer):
    _, masked = conversations(path, tokenizer, turns=3, answer_weight=3.0)
    source, examples = conversations(path, tokenizer, turns=3, answer_weight=3.0, prompt_weight=0.25)
    for example, plain in zip(examples, masked, strict=True):
        assert example.ids.tolist() == plain.ids.tolist()
        assert example.loss_mask.all()
        assert (example.weight[~plain.loss_mask] == 0.25).all()
        assert (example.weight[plain.loss_mask] == plain.weight[plain.loss_mask]).all()
    assert not all(example.loss_mask.all() for example in source.validation_examples(20))


def test_with_several_turns_the_first_question_is_more_often_before_the_story(path, tokenizer):
    def before(turns: int) -> float:
        _, examples = conversations(path, tokenizer, n=400, turns=turns, mixture={"words": 0})
        texts = [tokenizer.decode(example.ids.tolist(), control=True) for example in examples]
        prompts = [text.split("<|user|>")[1].split("<|assistant|>")[0] for text in texts]
        return sum("?" in prompt.split("Once")[0] or "." in prompt.split("Once")[0] for prompt in prompts) / len(
            prompts
        )

    assert before(turns=1) == pytest.approx(0.5, abs=0.1)
    assert before(turns=2) == pytest.approx(0.75, abs=0.1)


def test_every_answer_of_a_conversation_is_trained_and_no_question_is(path, tokenizer):
    source, examples = conversations(path, tokenizer, turns=4)
    for example in examples:
        everything, trained = decoded(source, example)
        answers = [turn.split("<|assistant|>")[1] for turn in everything.split("<|user|>")[1:]]
        assert trained == "".join(answers)
        assert len(set(answers)) == len(answers)  # none could be had by looking at the one before


def test_the_first_turn_does_not_depend_on_how_many_follow(path, tokenizer):
    _, alone = conversations(path, tokenizer, turns=2)
    _, together = conversations(path, tokenizer, turns=5)
    assert all(np.array_equal(b.ids[: len(a.ids)], a.ids) for a, b in zip(alone, together, strict=True))


def test_each_answer_of_a_conversation_has_the_weight_of_its_kind(path, tokenizer):
    _, examples = conversations(path, tokenizer, turns=4, loss_weights={"main_character": 7, "dialogue": 2})
    for example in examples:
        ids, weights = example.ids.tolist(), example.weight
        for place in range(len(ids)):
            rest = tokenizer.decode(ids[place : place + 8])
            if example.loss_mask[place] and rest.startswith("The main character is"):
                assert weights[place] == 7
            if example.loss_mask[place] and rest.startswith("Yes, the characters"):
                assert weights[place] == 2


def test_follow_up_questions_are_balanced_between_yes_and_no(path, tokenizer):
    source, examples = conversations(path, tokenizer, n=480, turns=6)
    trained = [decoded(source, example)[1] for example in examples]
    yes, no = (sum(text in answers for answers in trained) for text in ("Yes, the story has", "No, the story does"))
    assert 0.7 < yes / no < 1.4  # the data have one bad ending in twelve


def test_turns_are_added_if_they_fit_and_not_after_a_shortened_story(path, tokenizer):
    for seq_len in (64, 96, 160):
        source, examples = conversations(path, tokenizer, seq_len=seq_len, turns=6)
        assert all(len(example.ids) <= seq_len for example in examples)
        texts = [decoded(source, example)[0] for example in examples]
        assert all(text.count("<|user|>") == 1 for text in texts if " ... " in text)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mixture": {"sumary": 1}}, "data.mixture: 'sumary' is not a kind of task.*did you mean 'summary'"),
        ({"loss_weights": {"morals": 1}}, "data.loss_weights: 'morals' is not a kind of task.*did you mean 'moral'"),
        ({"mixture": dict.fromkeys(sft_dataloader.DEFAULT_MIXTURE, 0)}, "support none of the kinds"),
    ],
)
def test_a_wrong_share_or_weight_is_named(path, tokenizer, settings, says):
    with pytest.raises(UserError, match=says):
        dataset(path, tokenizer, **settings)


def test_data_that_support_no_requested_kind_are_an_error(path, tokenizer):
    with pytest.raises(UserError, match="support none of the kinds moral"):
        dataset(path, tokenizer, mixture=dict.fromkeys(sft_dataloader.DEFAULT_MIXTURE, 0) | {"moral": 1})


def test_no_example_is_longer_than_the_context_and_dropped_tasks_are_counted(path, tokenizer):
    source = dataset(path, tokenizer, seq_len=70)
    examples = [source[index] for index in range(240)]
    assert max(len(example.ids) for example in examples) <= 70
    assert all(example.n_trained > 0 for example in examples)
    assert source.stats["examples"] == 240
    assert source.stats["shortened"] > 0
    assert source.stats["too long: words"] > 0


def test_a_context_too_short_for_any_example_is_an_error(path, tokenizer):
    with pytest.raises(UserError, match=r"raise data\.seq_len"):
        dataset(path, tokenizer, seq_len=16)[0]


def test_a_record_without_an_example_is_replaced_and_counted(tmp_path, tokenizer):
    path = tmp_path / "x.txt"
    path.write_text("A lone cat.<|endoftext|>" * 5 + record_text(7) * 5, encoding="utf-8")
    source = dataset(path, tokenizer, mixture=dict.fromkeys(sft_dataloader.DEFAULT_MIXTURE, 0) | {"summary": 1})
    assert [source[index].kind for index in range(10)] == ["summary"] * 10
    assert source.stats["substituted"] == 5
    assert source.stats["records without a task"] >= 5


def test_a_system_message_opens_every_conversation(path, tokenizer):
    source = dataset(path, tokenizer, system_message="You tell stories.")
    assert decoded(source, source[3])[0].startswith("<|system|>You tell stories.<|user|>")


def test_validation_is_a_fixed_balanced_list_with_weight_one(path, tokenizer, source):
    examples = source.validation_examples(100)
    again = dataset(path, tokenizer).validation_examples(100)
    assert len(examples) == pytest.approx(100, abs=5)
    assert all(same(one, other) for one, other in zip(examples, again, strict=True))
    assert all((example.weight == example.loss_mask).all() for example in examples)  # 0 where nothing is trained
    endings = Counter(decoded(source, example)[1][:3] for example in examples if example.kind == "ending")
    assert endings["Yes"] == pytest.approx(endings["No,"], abs=1)


def test_validation_uses_no_record_twice_for_one_kind(source):
    seen = Counter(
        (e.kind, decoded(source, e)[0].split(" toys.")[0].split()[-1]) for e in source.validation_examples(400)
    )
    assert max(seen.values()) == 1


def test_held_out_tasks_of_a_yes_no_kind_are_balanced(source):
    tasks = source.eval_tasks("ending", 30)
    assert Counter(task.answer for task in tasks) == {"yes": 15, "no": 15}
    assert len(source.eval_tasks("ending", 100)) == 40  # only 20 records end badly


def test_held_out_tasks_come_from_different_records(source):
    tasks = source.eval_tasks("main_character", 50)
    assert len({task.prompt for task in tasks}) == len(tasks) == 50


def test_required_words_have_the_answer_weight_in_longer_examples(path, tokenizer):
    source = dataset(
        path, tokenizer, seq_len=1024, mixture={"words": 1.0}, loss_weights={"words": 0.5}, answer_weight=3.0
    )
    seen = 0
    for index in range(60):
        example = source[index]
        if example.kind != "words":
            continue
        weights = np.asarray(example.weight)
        assert set(weights[example.loss_mask].tolist()) <= {0.5, 3.0}
        prompt = tokenizer.decode(example.ids[~example.loss_mask].tolist())
        focused = tokenizer.decode(example.ids[weights == 3.0].tolist()).lower()
        assert example.loss_mask[weights == 3.0].all()
        listed = re.search(r"words:? ([a-z]+), ([a-z]+), ([a-z]+)|words ([a-z]+), ([a-z]+), ([a-z]+)", prompt)
        if listed:
            seen += 1
            assert any(word[:4] in focused for word in listed.groups() if word)
    assert seen > 5


def test_held_out_tasks_are_shortened_to_the_context(path, tokenizer):
    tasks = dataset(path, tokenizer, seq_len=70).eval_tasks("main_character", 50)
    assert len(tasks) == 50
    assert all(len(tokenizer.encode(task.prompt)) < 70 for task in tasks)


def test_every_trained_kind_has_held_out_tasks(source):
    assert [task.kind for kind in source.mixture.kinds for task in source.eval_tasks(kind, 1)] == [
        "summary", "what_happened", "main_character", "ending", "dialogue", "why", "words",
    ]  # fmt: skip


def test_records_from_plain_stories_have_no_ending_task(real_data, tmp_path, tokenizer):
    path = tmp_path / "derived.txt"
    texts = label_stories(stories(real_data / "tinystories" / "stories-valid.txt"))
    path.write_text("".join(text + "\n<|endoftext|>\n" for text in texts), encoding="utf-8")
    source = dataset(path, tokenizer, seq_len=512, seed=0)
    assert len(source) == 843
    assert {kind for kind, share in source.mixture.shares.items() if share > 0} == {
        "moral", "main_character", "dialogue/yes", "dialogue/no", "why", "words",
    }  # fmt: skip
    assert source.mixture.shares["dialogue/yes"] == pytest.approx(source.mixture.shares["dialogue/no"], rel=0.1)


def test_the_public_names_work_together(path):
    record = next(read_records(path))
    assert record == RecordIndex(path)[0] == parse_record(record_text(0))
    assert {task.kind for task in generate_tasks(record, 0)} >= {"summary", "ending", "words"}


def each_conversation(example) -> list[list[int]]:
    ids, edges = example.ids.tolist(), [*example.prefix_branches, len(example.ids)]
    beginning = ids[: edges[0]]
    return [beginning + ids[start:end] for start, end in pairwise(edges)] or [ids]


def test_branches_are_whole_conversations_about_one_story(path, tokenizer):
    source = dataset(path, tokenizer, turns=1, prefix_branches=4)
    several = [example for example in map(source.__getitem__, range(100)) if example.prefix_branches]
    assert len(several) > 20
    for example in several:
        texts = [tokenizer.decode(ids, control=True) for ids in each_conversation(example)]
        stories_shown = {text.removeprefix("<|user|>").split("\n\n")[0] for text in texts}
        assert len(stories_shown) == 1
        assert all(text.count("<|user|>") == 1 and text.endswith("<|endoftext|>") for text in texts)
        assert len({text.split("<|assistant|>")[1] for text in texts}) == len(texts) <= 4


def test_the_first_conversation_does_not_depend_on_the_number_of_branches(path, tokenizer):
    alone, shared = (dataset(path, tokenizer, prefix_branches=n) for n in (1, 3))
    for index in range(50):
        assert each_conversation(shared[index])[0] == alone[index].ids.tolist()


def test_a_question_before_the_story_has_no_branches(path, tokenizer):
    source = dataset(path, tokenizer, turns=1, prefix_branches=4)
    for example in map(source.__getitem__, range(60)):
        first_words = decoded(source, example)[0].removeprefix("<|user|>").split()[:2]
        assert (first_words == ["Once", "there"]) >= bool(example.prefix_branches)


def test_branches_are_counted(path, tokenizer):
    source = dataset(path, tokenizer, prefix_branches=4)
    made = [source[index] for index in range(60)]
    assert source.stats["conversations"] == sum(max(1, len(example.prefix_branches)) for example in made) > 60


def test_tasks_that_are_too_long_are_counted_once_each(path, tokenizer, monkeypatch):
    source = dataset(path, tokenizer, seq_len=70)
    results, truncate = [], sft_dataloader.truncate_to_context

    def counted(task, *arguments):
        results.append((task.kind, truncate(task, *arguments)))
        return results[-1][1]

    monkeypatch.setattr(sft_dataloader, "truncate_to_context", counted)
    for index in range(240):
        source[index]
    failed = Counter(f"too long: {kind}" for kind, result in results if result is None)
    assert failed
    assert {key: value for key, value in source.stats.items() if key.startswith("too long")} == failed


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_held_out_tasks_of_a_kind_with_only_one_answer_are_those(source, answer):
    tasks = source.eval_tasks("ending", 10, only=lambda task: task.answer == answer)
    assert [task.answer for task in tasks] == [answer] * 5
    assert len({task.prompt for task in tasks}) == 5
