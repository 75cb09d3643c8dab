"""The capability test: results by kind and group, the requested replies, and the Python interface."""

import json
import math

import pytest
from tiny import STORIES, about, tiny_model, tiny_tokenizer, writing

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation import capabilities
from mini_chat_gpt.evaluation.capabilities import (
    Evaluation,
    Item,
    capability_test,
    differences,
    evaluate,
    rows_at_once,
    summarize,
)
from mini_chat_gpt.evaluation.task_metrics import score
from mini_chat_gpt.evaluation.text_metrics import COUNTS
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import Reply
from mini_chat_gpt.model import GPT
from mini_chat_gpt.sft_dataloader import stories
from mini_chat_gpt.sft_generate import test_sft_capabilities
from mini_chat_gpt.tinystories.tasks import Task
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

MODEL = tiny_model(300)


@pytest.fixture
def replies(monkeypatch):
    """Replies by prompt, for a model that is replaced. The key "requests" has the calls."""
    known: dict[str, Reply] = {}
    requests: list[tuple[list[str], Sampling]] = []

    def reply(model, tokenizer, prompts, sampling, batch_size, progress):
        requests.append((list(prompts), sampling))
        for number in range(len(prompts)):
            if progress:
                progress(number + 1)
        return [known[prompt] for prompt in prompts]

    monkeypatch.setattr(capabilities, "generate_replies", reply)
    known["requests"] = requests
    return known


def test_results_are_means_by_kind_with_count_stops_and_baseline(replies):
    tasks = [about("ending", "Yes.", "yes", STORIES[0]), writing("cat"), about("ending", "No.", "no", STORIES[1])]
    replies[tasks[0].prompt] = Reply("Yes", (1,), "stop", 9)
    replies[tasks[1].prompt] = Reply("Two cats.", (1, 2), "length", 9)
    replies[tasks[2].prompt] = Reply("Yes", (1,), "stop", 9)
    counted: list[int] = []
    result = evaluate(MODEL, tiny_tokenizer(), tasks, progress=counted.append)
    assert list(result.results) == ["ending", "words"]
    assert result.results["ending"] == {
        "accuracy": 0.5,
        "n": 2,
        "stops": 1,
        "role_token": 0,
        "empty": 0,
        "baseline": {"accuracy": 0.5, "rules": {"accuracy": "always “Yes”"}},
        "baselines": {"always “Yes”": {"accuracy": 0.5}, "always “No”": {"accuracy": 0.5}},
        "interval": {
            "accuracy": pytest.approx([0.0945, 0.9055], abs=1e-4),
            "stops": pytest.approx([0.3424, 1], abs=1e-4),
            "role_token": pytest.approx([0, 0.6576], abs=1e-4),
            "empty": pytest.approx([0, 0.6576], abs=1e-4),
        },
        "measured": {},
    }
    words = result.results["words"]
    assert [words[name] for name in ("used", "all_used", "n_words", "n", "stops")] == [1, 1, 2, 1, 0]
    assert (words["baseline"]["used"], words["baseline"]["rules"]["used"]) == (0, "the story of another task")
    assert [(item.task, item.reply, item.finish_reason) for item in result.items] == [
        (tasks[0], "Yes", "stop"),
        (tasks[2], "Yes", "stop"),
        (tasks[1], "Two cats.", "length"),
    ]
    assert counted == [1, 2, 3]
    assert result.groups == {}
    assert json.loads(json.dumps(result.as_json()))["items"][0]["reply"] == "Yes"


def test_an_interval_contains_its_mean_and_is_narrower_for_more_tasks():
    task = about("ending", "Yes.", "yes")
    few = [Item(task, reply, "stop", {"accuracy": float(reply == "Yes")}) for reply in ("Yes", "Yes", "", "No") * 5]
    result, of_more = summarize(few)["ending"], summarize(few * 9)["ending"]
    low, high = result["interval"]["accuracy"]
    assert 0.25 <= low < result["accuracy"] == 0.5 < high <= 0.75
    assert result["empty"] == 0.25
    assert result["interval"]["empty"][0] < 0.25 < result["interval"]["empty"][1]
    assert of_more["interval"]["accuracy"][1] - of_more["interval"]["accuracy"][0] < (high - low) / 2
    assert result == summarize(few)["ending"]


def test_a_measure_of_only_some_tasks_has_its_own_count():
    asked = Task("words", "Write with cat", "A cat. So it was.", None, required=("cat",), sentence="So it was.")
    items = [Item(task, "A cat.", "stop", score(task, "A cat.")) for task in (writing("cat"), asked)]
    result = summarize(items)["words"]
    assert result["measured"] == {"has_sentence": 1, "has_sentence_verbatim": 1}
    assert (result["has_sentence"], result["n"]) == (0, 2)
    assert set(result["interval"]) == {*items[1].scores, "stops", "role_token", "empty"}


def test_differences_are_paired_by_task_for_each_kind_and_group():
    def replied(*replies: str) -> Evaluation:
        tasks = [about("ending", "Yes.", "yes", story) for story in STORIES[:3] * 4] + [writing("cat")]
        groups = ["seen"] * 6 + ["unseen"] * 6 + [""]
        items = [Item(t, r, "stop", score(t, r), g) for t, r, g in zip(tasks, replies, groups, strict=True)]
        return Evaluation(summarize(items), items)

    before, after = replied(*["No"] * 11, "Yes", "cats"), replied(*["Yes"] * 11, "No", "cats")
    seen, unseen, words = differences(before, after)
    assert [(one.kind, one.group, one.measure) for one in (seen, unseen, words)] == [
        ("ending", "seen", "accuracy"), ("ending", "unseen", "accuracy"), ("words", "", "used"),
    ]  # fmt: skip
    assert (seen.paired.difference, seen.paired.p) == (1, 2 / 2**6)
    assert seen.paired.is_significant
    assert (unseen.paired.difference, unseen.paired.is_significant) == (pytest.approx(4 / 6), False)
    assert (words.paired.difference, words.paired.p) == (0, 1)
    assert [one.paired.difference for one in differences(after, before)] == [
        -one.paired.difference for one in (seen, unseen, words)
    ]


def test_replies_may_be_twice_as_long_as_the_longest_target(replies):
    tasks = [about("moral", "Be kind.", story=STORIES[0]), about("moral", "Look where you go.", story=STORIES[1])]
    tokenizer = tiny_tokenizer()
    replies.update({task.prompt: Reply("", (), "length", 9) for task in tasks})
    evaluate(MODEL, tokenizer, tasks)
    evaluate(MODEL, tokenizer, tasks, Sampling(temperature=0, max_new_tokens=3))
    limits = [sampling.max_new_tokens for _, sampling in replies["requests"]]
    assert limits == [2 * len(tokenizer.encode("Look where you go.")) + 1, 3]


def test_tasks_that_can_not_be_scored_are_skipped(replies):
    replies[writing("cat").prompt] = Reply("cat", (), "stop", 9)
    assert evaluate(MODEL, tiny_tokenizer(), [writing(), writing("cat")]).results["words"]["n"] == 1


@pytest.mark.parametrize("tasks", [[], [writing()]])
def test_nothing_to_score_is_a_clear_error(tasks):
    with pytest.raises(UserError, match="no task that can be scored"):
        evaluate(MODEL, tiny_tokenizer(), tasks)


def test_the_batch_size_does_not_change_the_result():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat()
    model = tiny_model(tokenizer.vocab_size, context_length=256)
    tasks = [about("moral", "Be kind.", story=story) for story in STORIES] + [writing("cat"), writing("dog")]
    assert evaluate(model, tokenizer, tasks, batch_size=3) == evaluate(model, tokenizer, tasks, batch_size=1)


def test_there_are_results_by_group_and_over_all_tasks(replies):
    groups = {
        "seen": [about("ending", "Yes.", "yes", STORIES[0]), about("moral", "Share.", story=STORIES[2])],
        "unseen": [about("ending", "No.", "no", STORIES[1])],
    }
    replies.update({task.prompt: Reply("Yes", (1,), "stop", 9) for tasks in groups.values() for task in tasks})
    result = evaluate(MODEL, tiny_tokenizer(), groups)
    assert {name: {kind: one["n"] for kind, one in results.items()} for name, results in result.groups.items()} == {
        "seen": {"ending": 1, "moral": 1},
        "unseen": {"ending": 1},
    }
    assert [result.groups[name]["ending"]["accuracy"] for name in groups] == [1, 0]
    assert (result.results["ending"]["n"], result.results["ending"]["accuracy"]) == (2, 0.5)
    assert [item.group for item in result.items] == ["seen", "unseen", "seen"]


def test_replies_that_end_with_a_role_token_are_counted(replies):
    tokenizer = tiny_tokenizer()
    tokenizer.add_control_tokens()
    tasks = [about("moral", "Be kind.", story=story) for story in STORIES[:3]]
    ends = [tokenizer.control[name] for name in ("<|endoftext|>", "<|user|>", "<|assistant|>")]
    replies.update({task.prompt: Reply("x", (1,), "stop", 9, end) for task, end in zip(tasks, ends, strict=True)})
    result = evaluate(MODEL, tokenizer, tasks)
    assert [item.role_token for item in result.items] == [False, True, True]
    assert (result.results["moral"]["stops"], result.results["moral"]["role_token"]) == (1, pytest.approx(2 / 3))


def test_a_model_with_a_large_cache_has_smaller_batches():
    assert rows_at_once(tiny_model(300)) == 64
    assert rows_at_once(tiny_model(300, n_embd=512, n_kv_head=4, n_layer=8, context_length=16384)) == 4


# The Python interface


@pytest.fixture(scope="module")
def untrained(sample) -> tuple[GPT, ChatTokenizer]:
    tokenizer = ChatTokenizer.train(stories(sample / "TinyStoriesInstruct-valid.txt"), 600)
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat()
    return tiny_model(tokenizer.vocab_size, context_length=512), tokenizer


def test_an_untrained_model_gets_valid_results(untrained, sample):
    results = test_sft_capabilities(*untrained, sample, n=2, kinds=["moral", "ending", "words"])
    assert list(results) == ["moral", "ending", "words"]
    assert results["ending"]["n"] == 4  # two groups
    assert set(results["moral"]) == {
        "exact", "rouge_l", "verbatim", "n", "stops", "role_token", "empty", "baseline", "baselines", "interval", "measured"
    }  # fmt: skip
    values = {name: value for one in results.values() for name, value in one.items() if isinstance(value, float)}
    assert all(0 <= value <= 1 for name, value in values.items() if name not in COUNTS)
    assert all(map(math.isfinite, values.values()))


def test_a_model_with_empty_replies_gets_zeros(untrained, sample, monkeypatch):
    silence = Reply("", (), "stop", 9)
    monkeypatch.setattr(capabilities, "generate_replies", lambda *arguments, **options: [silence] * len(arguments[2]))
    results = test_sft_capabilities(*untrained, sample, n=2)
    assert {one["stops"] for one in results.values()} == {1}
    assert {next(iter(one.values())) for one in results.values()} == {0}
    assert {one["empty"] for one in results.values()} == {1}


def test_results_by_group_and_replies_are_returned_too(untrained, sample):
    counted: list[tuple[int, int]] = []
    result = capability_test(*untrained, sample, n=2, kinds=["ending"], progress=lambda *done: counted.append(done))
    assert list(result.groups) == ["seen", "unseen"]
    assert {results["ending"]["n"] for results in result.groups.values()} == {2}
    assert result.results == test_sft_capabilities(*untrained, sample, n=2, kinds=["ending"])
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(result.items) == 4


def test_without_data_the_tasks_are_those_of_the_sample(untrained, sample, monkeypatch):
    monkeypatch.setattr(
        "mini_chat_gpt.evaluation.held_out.sample_valid_file", lambda: sample / "TinyStoriesInstruct-valid.txt"
    )
    expected = test_sft_capabilities(*untrained, sample, n=1, kinds=["dialogue"])
    assert test_sft_capabilities(*untrained, n=1, kinds=["dialogue"]) == expected


def test_pytest_does_not_collect_the_capability_test(request):
    assert not [item for item in request.session.items if item.name == "test_sft_capabilities"]
