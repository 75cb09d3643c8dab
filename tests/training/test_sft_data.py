"""Which examples a run gets: tasks, chats, or both; and what it is scored by meanwhile."""

import json
from collections import Counter

import pytest
from tiny import CountingDataset, lively_model, tiny_config, tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.sft_train import eval_metrics
from mini_chat_gpt.training.sft_data import Mixed, make_examples

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"Hi {n}", "completion": f"Hello {n}!"}) for n in range(20)))
    return path


def examples_of(file=None, sample=None, sft=None, **sections):
    given = {"sft": {"dataset_path": str(sample), **(sft or {})}, **sections}
    if file is not None:
        given["chats"] = {"files": str(file)} | sections.get("chats", {})
    return make_examples(tiny_config(**given), TOKENIZER, 512)


class NamedIndices(CountingDataset):
    def __init__(self, name, n):
        super().__init__(n)
        self.name = name

    def __getitem__(self, index):
        return self.name, index


def test_an_epoch_of_a_mixture_has_each_example_of_the_first_once_and_a_share_of_the_second():
    first, second = NamedIndices("first", 30), NamedIndices("second", 1000)
    mixed = Mixed(first, second, 0.25, seed=1)
    assert len(mixed) == 40
    for epoch in (0, 1, 7):
        drawn = [mixed[index] for index in range(40 * epoch, 40 * epoch + 40)]
        assert Counter(name for name, _ in drawn) == {"first": 30, "second": 10}
        assert {index for name, index in drawn if name == "first"} == set(range(30 * epoch, 30 * epoch + 30))
        assert {index for name, index in drawn if name == "second"} == set(range(10 * epoch, 10 * epoch + 10))
    names = [mixed[index][0] for index in range(40)]
    assert names != sorted(names)


def test_a_share_of_the_examples_are_conversations(sample):
    plain = examples_of(sample=sample, data={"seq_len": 512, "eval_examples": 20})
    found = examples_of(sample=sample, data={"seq_len": 512, "eval_examples": 20, "conversations": 0.5})
    assert Counter(example.kind == "conversation" for example in found.validation) == {True: 10, False: 10}
    assert {example.kind for example in plain.validation} & {"conversation"} == set()
    n = len(plain.source)
    assert len(found.source) == 2 * n
    drawn = [found.source[index] for index in range(2 * n)]
    others = [example for example in drawn if example.kind != "conversation"]
    assert len(others) == n
    # The other examples are those of a run without conversations.
    assert {example.ids.tobytes() for example in others} == {plain.source[i].ids.tobytes() for i in range(n)}


def test_chats_alone_need_no_stories(chats):
    found = examples_of(chats, chats={"valid_share": 0.2})
    assert (len(found.source), len(found.validation)) == (16, 4)
    assert {example.kind for example in found.validation} == {"chats"}
    assert [shown.expected for shown in found.shown] == [
        f"Hello {shown.prompt[0].content.removeprefix('Hi ')}!" for shown in found.shown
    ]
    assert not found.eval_tasks


def test_chats_and_stories_together(chats, sample):
    found = examples_of(chats, sample, chats={"stories": 0.5}, sft={"eval_tasks": 2})
    kinds = Counter(found.source[index].kind for index in range(len(found.source)))
    assert kinds["chats"] == 18
    assert sum(kinds.values()) == 36
    assert {example.kind for example in found.validation} > {"chats", "moral"}
    assert Counter(task.kind for task in found.eval_tasks)["moral"] == 2


def test_held_out_files_are_never_trained_on(chats, tmp_path):
    other = tmp_path / "held_out.jsonl"
    other.write_text(chats.read_text().replace("Hello 3!", "Hello three!"))
    found = examples_of(chats, chats={"valid_files": str(other)})
    assert (len(found.source), len(found.validation)) == (20, 20)
    assert "Held-out chats that are also in the training data: 19" in found.notes[0]
    assert "Held-out chats that begin with a question of the training data: 1" in found.notes[1]
    with pytest.raises(UserError, match=r"is in chats.files and in chats.valid_files"):
        examples_of(chats, chats={"valid_files": str(chats)})


def test_the_validation_split_of_a_folder_is_held_out(chats, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, n in (("train.jsonl", 8), ("valid.jsonl", 3), ("test.jsonl", 5)):
        records = [{"prompt": f"{name} {number}", "completion": "Yes."} for number in range(n)]
        (folder / name).write_text("\n".join(map(json.dumps, records)))
    note = f"{folder}: trained on: train.jsonl; held out: valid.jsonl; not used: test.jsonl."
    alone = examples_of(folder)
    assert (len(alone.source), len(alone.validation), alone.notes) == (8, 3, [note])
    # A part of the other file is held out as well.
    both = examples_of(f"{folder},{chats}", chats={"valid_share": 0.2, "files": f"{folder},{chats}"})
    assert (len(both.source), Counter(example.kind for example in both.validation)) == (24, {"data": 3, "chats": 4})
    # Files for validation replace the split; of a folder among them it is the split that validates.
    replaced = examples_of(folder, chats={"files": str(folder), "valid_files": str(chats)})
    assert (len(replaced.source), len(replaced.validation)) == (8, 20)
    assert replaced.notes == [f"{folder}: trained on: train.jsonl; not used: valid.jsonl, test.jsonl."]
    validating = examples_of(chats, chats={"files": str(chats), "valid_files": str(folder)})
    assert (len(validating.source), len(validating.validation)) == (20, 3)


def test_bad_records_are_an_error_or_are_skipped(chats):
    chats.write_text(chats.read_text() + '\n{"prompt": "Hi"}\n')
    with pytest.raises(UserError, match=r'line 21: it has "prompt" but no reply; .*\). Correct it, or skip it'):
        examples_of(chats)
    found = examples_of(chats, chats={"skip_bad": True})
    assert f'{chats}: records skipped: 1\n  line 21: it has "prompt" but no reply; add it as' in found.notes[0]


def test_what_is_not_used_is_a_note_and_a_file_without_a_usable_record_says_why(chats):
    records = [json.dumps({"prompt": f"Hi {n}", "response": "Hello!", "score": n}) for n in range(1, 5)]
    chats.write_text("\n".join([*records, '{"prompt": "Hi", "completion": "No.", "label": false}']))
    notes = examples_of(chats).notes
    assert f'{chats}: not used: "score" (4 records).' in notes
    assert f"{chats}: not trained on, because of a label that says that the reply is bad: 1 record (line 5)." in notes
    chats.write_text('{"a": 1}\n{"a": 2}\n{"prompt": "Hi", "completion": "No.", "label": false}\n')
    with pytest.raises(UserError) as error:
        examples_of(chats, chats={"skip_bad": True})
    lines = str(error.value).splitlines()
    assert lines[0] == f"No record of {chats} can be trained on:"
    assert lines[1].startswith(f'  {chats}: 2 records (lines 1, 2): its keys ("a") are not those of a chat')
    assert "the reply is bad: 1 record" in lines[2]


def test_other_names_of_keys_are_read_for_training(chats):
    chats.write_text("".join(json.dumps({"asked": f"Hi {n}", "said": "Hello!"}) + "\n" for n in range(5)))
    found = examples_of(chats, chats={"keys": {"prompt": "asked", "response": "said"}})
    assert len(found.source) == 4


def test_curriculum_stages_need_stories(chats, sample):
    stage = {"curriculum": [{"share": 0.5, "seq_len": 64}], "num_workers": 0}
    with pytest.raises(UserError, match=r"chats.stories is 0; set chats.stories"):
        examples_of(chats, data=stage)
    assert len(examples_of(chats, sample, chats={"stories": 0.3}, data=stage).stages) == 1


def test_eval_tasks_give_a_score_for_each_kind(sample):
    tasks = examples_of(None, sample, sft={"eval_tasks": 1}).eval_tasks
    measure = eval_metrics(tasks, "eval/moral/exact", TOKENIZER)
    scores = measure(lively_model(TOKENIZER.vocab_size, context_length=512))
    assert "eval/moral/exact" in scores
    assert all(0 <= score <= 1 for score in scores.values())
    with pytest.raises(UserError, match=r"sft.best_metric is 'moral'; here it can be val_loss, eval/"):
        eval_metrics(tasks, "moral", TOKENIZER)
    assert eval_metrics([], "val_loss", TOKENIZER) is None


def test_a_stage_changes_the_data_section_within_the_context():
    config = tiny_config(
        data={
            "mixture": {"moral": 2},
            "curriculum": [{"share": 0.5, "seq_len": 900, "mixture": {"why": 1}, "turns": 2}],
        }
    )
    data = config.data.curriculum[0].apply_to(config.data).limited_to(512)
    assert (data.seq_len, data.mixture, data.turns) == (512, {"moral": 2, "why": 1}, 2)
    assert data.answer_weight == config.data.answer_weight
    assert config.data.limited_to(100).seq_len == 100
