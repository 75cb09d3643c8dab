"""The rules of benchmarks/conversation.py accept honest replies of many forms, and reject babble, stories and one reply for all turns."""

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tiny import lively_model

from mini_chat_gpt.assets import load
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
REPLIES = yaml.safe_load(Path(__file__).with_name("conversation_replies.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def modules() -> Iterator[dict]:
    """The benchmark's modules, which import each other by name."""
    names = ("conversation_text", "conversation_rules", "conversation_script", "told_stories", "conversation")
    sys.path.insert(0, str(BENCHMARKS))
    yield {name.removeprefix("conversation_"): importlib.import_module(name) for name in names}
    sys.path.remove(str(BENCHMARKS))


def step_of(rules, name: str):
    """The step of an entry of conversation_replies.yaml."""
    entry = REPLIES["kinds"][name]
    story = REPLIES["second" if entry.get("second") else "story"]
    texts = {"STORY": REPLIES["story"], "SECOND": REPLIES["second"], "SUMMARY": REPLIES["summary"]}
    message, answer = entry["message"], entry.get("answer", "")
    for slot, text in texts.items():
        message, answer = message.replace(slot, text), answer.replace(slot, text)
    return rules.Step(
        kind=entry.get("kind", name),
        message=message,
        about=entry.get("about", ""),
        answer=answer,
        opposite=entry.get("opposite", False),
        story=story,
        words=tuple(entry.get("words", ())),
        name="Hazel" if entry.get("second") else "Pedro",
    )


def verdicts(rules, name: str, replies: list[str]) -> dict[str, str | None]:
    """Reply -> its problem, after a conversation in which the story was pasted."""
    pasted = step_of(rules, "pasted_story"), rules.Reply("Ask me!"), None
    step = step_of(rules, name)
    return {reply: rules.problem_of(step, rules.Reply(reply), [pasted]) for reply in replies}


def test_there_are_replies_of_every_kind(modules):
    assert set(modules["rules"].KINDS) <= set(REPLIES["kinds"])
    assert all(len(entry[part]) >= 10 for entry in REPLIES["kinds"].values() for part in ("good", "bad"))


@pytest.mark.parametrize("name", REPLIES["kinds"])
def test_good_replies_are_accepted(modules, name):
    rejected = {k: v for k, v in verdicts(modules["rules"], name, REPLIES["kinds"][name]["good"]).items() if v}
    assert rejected == {}


@pytest.mark.parametrize("name", REPLIES["kinds"])
def test_bad_replies_are_rejected(modules, name):
    accepted = [k for k, v in verdicts(modules["rules"], name, REPLIES["kinds"][name]["bad"]).items() if v is None]
    assert accepted == []


def conversation(rules, reply_to) -> int:
    """The number of right or sensible turns of a conversation."""
    earlier, right = [], 0
    for kind in rules.KINDS:
        step = step_of(rules, kind)
        reply = rules.Reply(reply_to(kind))
        problem = rules.problem_of(step, reply, earlier)
        right += problem is None
        earlier.append((step, reply, problem))
    return right


def test_good_replies_make_a_full_conversation(modules):
    for number in range(5):
        assert conversation(modules["rules"], lambda kind, n=number: REPLIES["kinds"][kind]["good"][n]) == 20


def test_one_reply_for_all_turns_scores_low(modules):
    rules = modules["rules"]
    for entry in REPLIES["kinds"].values():
        for reply in entry["good"][:4]:
            assert conversation(rules, lambda kind, reply=reply: reply) <= 4, reply
    everything = (
        "Hello! I am a small story model. I can write stories and answer questions about a story. I don't know anything else. "
        "You're welcome, goodbye!"
    )
    assert conversation(rules, lambda kind: everything) <= 4


def test_random_words_score_nothing(modules):
    rules, rng = modules["rules"], random.Random(0)
    words = sorted({word for entry in REPLIES["kinds"].values() for reply in entry["good"] for word in reply.split()})
    pieces = [word[: rng.randint(1, 4)] + word[: rng.randint(0, 4)] for word in words]
    for vocabulary, most in ((words, 2.5), (pieces, 0.1)):
        scores = [
            conversation(rules, lambda kind, v=vocabulary: " ".join(rng.choices(v, k=rng.randint(5, 15))))
            for _ in range(20)
        ]
        assert sum(scores) / len(scores) <= most


def test_a_reply_that_was_cut_off_is_wrong(modules):
    rules = modules["rules"]
    assert rules.problem_of(step_of(rules, "greeting"), rules.Reply("Hello!", ended=False)) == "does not end"


def test_the_right_answer_again_is_a_good_reply_to_are_you_sure(modules):
    rules = modules["rules"]
    why = step_of(rules, "why")
    again = rules.Reply("Because somebody had taken the tasty plum.")
    assert rules.problem_of(step_of(rules, "follow_up"), again, [(why, again, None)]) is None
    assert rules.problem_of(step_of(rules, "follow_up"), again, [(why, again, "wrong")]) is not None


def test_only_the_repetition_of_a_right_reply_counts(modules):
    rules = modules["rules"]
    decline = rules.Reply("I can't help with that. I only know stories.")
    before = step_of(rules, "thanks"), decline
    assert rules.problem_of(step_of(rules, "knowledge"), decline, [(*before, "no sign of welcomes")]) is None
    assert rules.problem_of(step_of(rules, "knowledge"), decline, [(*before, None)]) == "the same as for thanks"


# The script


@pytest.fixture(scope="module")
def held_out_folder(tmp_path_factory) -> Path:
    """A folder with a valid split that has enough stories of each kind."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, n_train=0, n_valid=1000)
    return folder


@pytest.fixture(scope="module")
def stories(modules, held_out_folder) -> list:
    return modules["script"].held_out(held_out_folder)


def test_conversations_are_balanced_and_complete(modules, stories):
    script, rules = modules["script"], modules["rules"]
    conversations = script.scripts(stories, 10, seed=3)
    assert [story.group for story, _ in conversations] == ["seen"] * 10 + ["new"] * 10
    assert len({story.plot for story, _ in conversations[:10]}) == 10
    for group in ("seen", "new"):
        of_group = [story for story, _ in conversations if story.group == group]
        assert sum(story.ending == "no" for story in of_group) == 4
        assert sum(story.dialogue == "no" for story in of_group) == 4
    for story, steps in conversations:
        assert tuple(step.kind for step in steps) == rules.KINDS
        assert story.fact
        assert story.moral
        assert not any("{" in step.message.replace(story.text, "") for step in steps)
        assert all(
            step.answer for step in steps if step.kind in ("main_character", "why", "summary", "moral", "this_story")
        )
    assert [steps for _, steps in script.scripts(stories, 10, seed=3)] == [steps for _, steps in conversations]


def test_wordings_are_all_used_before_one_is_used_again(modules):
    wordings, messages = modules["script"].Wordings(5), modules["text"].settings()["messages"]
    for kind in ("greeting", "thanks", "identity", "off_topic"):
        assert len(messages[kind]) >= 30
        asked = [wordings.next(kind)["ask"] for _ in messages[kind]]
        assert len(set(asked)) == len(messages[kind])


def test_short_stories_have_their_facts_and_names_of_their_own(modules):
    script, rng = modules["script"], random.Random(1)
    words = load("sample_words.yaml")
    names = {name for part in ("names", "names_only_in_valid") for of in words[part].values() for name in of}
    for number in range(60):
        story = script.short_story(number, rng)
        assert 20 <= len(story.text.split()) <= 60
        assert story.name not in names
        assert f"{story.fact} because {story.reason.removeprefix('Because ')}" in story.text
        assert story.question.startswith("Why ")
        assert ('"' in story.text) == (story.dialogue == "yes")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("{why}", "Why was Pedro sad?"),
        ("And {why}", "And why was Pedro sad?"),
        ("One question. {why}", "One question. Why was Pedro sad?"),
        ("Please explain {because}.", "Please explain why Pedro was sad."),
        ("It says that {clause}.", "It says that Pedro was sad."),
        ("A story with {words}", "A story with jump, tree and happy"),
    ],
)
def test_messages_are_filled_in(modules, message, expected):
    script = modules["script"]
    story = script.Facts("", "Pedro", "yes", "yes", "Why was Pedro sad?", "Because it rained.", "Pedro was sad")
    assert script.fill(message, story, ("jump", "tree", "happy")) == expected


# The commands


@pytest.fixture(scope="module")
def model(stories, tmp_path_factory) -> Path:
    """A checkpoint with random weights."""
    tokenizer = ChatTokenizer.train([story.text for story in stories[:50]], 400)
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat()
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(folder, lively_model(tokenizer.vocab_size, context_length=512), tokenizer)
    return folder


def test_a_model_with_random_weights_scores_almost_nothing(
    modules, model, held_out_folder, monkeypatch, tmp_path, capsys
):
    command = modules["conversation"]
    monkeypatch.setattr(command, "GREEDY", Sampling(max_new_tokens=20, temperature=0))
    options = ["--checkpoint", str(model), "--data", str(held_out_folder), "--n", "2", "--show", "1"]
    assert command.main([*options, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "1 greeting" in out
    assert "20 goodbye" in out
    assert "Goals: mean" in out
    conversations = json.loads((tmp_path / "out.json").read_text())
    assert [one["group"] for one in conversations] == ["seen", "new"]
    assert sum(one["score"] for one in conversations) <= 2


def test_the_right_replies_make_a_perfect_table(modules, model, stories, monkeypatch):
    command, rules = modules["conversation"], modules["rules"]
    [(story, steps), _] = modules["script"].scripts(stories, 1, seed=1)
    monkeypatch.setattr(command, "say", lambda session, message: (rules.Reply(replies[message]), False))
    replies = {step.message: _right_reply(step) for step in steps}
    conversation = command.converse(*command.load_checkpoint(model, "cpu"), story, steps)
    assert [(turn.kind, turn.problem) for turn in conversation.turns if turn.problem] == []
    assert "mean of 20" in command.table([conversation])


def _right_reply(step) -> str:
    if step.kind in ("dialogue", "ending") or step.about in ("dialogue", "ending"):
        return {"yes": "No.", "no": "Yes."}[step.answer] if step.opposite else f"{step.answer}."
    if step.kind == "write_story":
        words = " ".join(step.words)
        end = "It went out to see the river. There it met a dog and a duck, and all three sat in the sun until it was dark."
        return f"Once there was a cat. {words}. {end}"
    if step.kind == "follow_up":
        return "Yes, I am sure." if step.about == "sure" else step.answer
    social = (
        "greeting",
        "identity",
        "abilities",
        "off_topic",
        "knowledge",
        "pasted_story",
        "thanks",
        "compliment",
        "goodbye",
    )
    return REPLIES["kinds"][step.kind]["good"][0] if step.kind in social else step.answer


def test_told_stories_are_measured_beside_the_sample(modules, model, held_out_folder, monkeypatch, capsys):
    command = modules["told_stories"]
    monkeypatch.setattr(command, "GREEDY", Sampling(max_new_tokens=20, temperature=0))
    options = ["--checkpoint", str(model), "--data", str(held_out_folder), "--n", "3", "--judge", str(model)]
    assert command.main([*options, "--show", "1"]) == 0
    out = capsys.readouterr().out
    for row in ("words used", "repeated 4-grams", "names introduced", "ratio to the sample"):
        assert row in out


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Once there was a boy named Tim. He was glad. He ran.", {"Tim": True}),
        ("There was a boy. He ran. He saw a girl. Her name was Lily.", {"Lily": True}),
        ("There was a boy. He ran. Then Lily came. She was cold.", {"Lily": False}),
        ("There was a boy. He ran. His friend Ben came. Ben ran, too.", {"Ben": True}),
        ("There was a boy. He ran. He met his friends Ben and Sue.", {"Ben": True, "Sue": True}),
        ("There was a boy. He ran. Sue, his best friend, ran too.", {"Sue": True}),
        ("There was a boy. He ran. A little mouse called Pip came.", {"Pip": True}),
        ("There was a boy. He ran. Tim's cousin Ann came with Tim.", {"Tim": False, "Ann": True}),
        ("There was a boy. He ran. Mom said that Monday was cold. Bravo!", {}),
        ("There was a boy. He ran. Tifa went to the blorp.", {"Tifa": False}),
        ("There was a boy. He ran. The Red ball was red.", {}),
    ],
)
def test_names_are_found_and_their_introduction(modules, text, names):
    assert {name.name: bool(name.introduced) for name in modules["told_stories"].names_in(text)} == names


def test_almost_all_names_of_the_sample_are_introduced(modules, stories):
    texts = [story.text for story in stories[:200]]
    command = modules["told_stories"]
    assert command.share_introduced(texts) > 0.98
    heroes = [story.name in {name.name for name in command.names_in(story.text)} for story in stories[:200]]
    assert all(heroes)
    strangers = [text.replace("His friend ", "").replace("Her friend ", "").replace(" friend ", " ") for text in texts]
    assert command.share_introduced(strangers) < command.share_introduced(texts)
