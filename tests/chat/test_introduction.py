"""The first screen of a chat: what the model was trained to do, as its checkpoint says it, and prompts to try."""

import json
import shutil

import pytest
from tiny import chat_tokenizer, tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt.chat.commands import run_command
from mini_chat_gpt.chat.introduction import introduce
from mini_chat_gpt.chat.loop import Chat
from mini_chat_gpt.chat.session import ChatSession
from mini_chat_gpt.chat.terminal import Plain
from mini_chat_gpt.checkpoints.convert import convert
from mini_chat_gpt.checkpoints.find import META, find_checkpoint
from mini_chat_gpt.checkpoints.purpose import MAX_PROMPT, Purpose, prompts_to_try, read_purpose
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.tinystories.tasks import TASK_KINDS


@pytest.fixture
def checkpoint(tmp_path):
    """Save a model with this metadata."""

    def save(**info):
        tokenizer = chat_tokenizer()
        return save_checkpoint(tmp_path / "step-1", tiny_model(tokenizer.vocab_size), tokenizer, info)

    return save


def session_with(examples, base=False) -> ChatSession:
    tokenizer = tiny_tokenizer() if base else chat_tokenizer()
    session = ChatSession(tiny_model(tokenizer.vocab_size), tokenizer, Sampling(temperature=0, max_new_tokens=4))
    session.examples = examples
    return session


def test_the_purpose_travels_with_a_copied_and_a_converted_checkpoint(checkpoint, tmp_path):
    purpose = Purpose(tasks=["words", "moral"], prompts=["Tell me a story."])
    folder = checkpoint(job="sft", purpose=purpose.model_dump())
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert read_purpose(tmp_path / "elsewhere") == purpose
    convert(folder, tmp_path / "converted")
    assert read_purpose(tmp_path / "converted") == purpose


def test_an_imported_model_has_no_purpose_and_an_older_run_an_unknown_one(checkpoint, tmp_path):
    assert read_purpose(tmp_path / "model.gguf") == Purpose()
    folder = checkpoint(job="import")
    assert read_purpose(folder) == Purpose()
    (folder / META).write_text((folder / META).read_text().replace('"import"', '"sft"'))
    assert read_purpose(folder) is None


def test_a_damaged_purpose_is_one_sentence(checkpoint):
    folder = checkpoint(job="sft", purpose={"prompts": [3]})
    with pytest.raises(UserError, match=r"mini_chat_gpt.json: purpose is damaged: prompts.0 must be text, not 3"):
        read_purpose(folder)


def test_every_kind_of_task_has_words_in_the_introduction():
    line = introduce(Purpose(tasks=[*TASK_KINDS, "my_kind"]), is_base=False).line
    assert line == (
        "This model was trained to answer questions about a story (summary, moral, main character, ending, dialogue, reasons, "
        "my kind) and write a story with given words."
    )


@pytest.mark.parametrize(
    ("purpose", "line"),
    [
        (Purpose(tasks=["words"]), "This model was trained to write a story with given words."),
        (Purpose(tasks=["quote"]), "This model was trained to quote."),
        (Purpose(chats=["a.jsonl"]), "This model was trained to reply as in the chats of a.jsonl."),
        (
            Purpose(chats=["a", "b", "c", "d", "e"], tasks=["ending"]),
            "This model was trained to reply as in the chats of a, b, c and 2 more and answer questions about a story (ending).",
        ),
    ],
)
def test_the_introduction_names_what_was_trained(purpose, line):
    assert introduce(purpose, is_base=False).line == line


def test_a_model_that_converses_is_asked_what_it_can_do():
    introduction = introduce(Purpose(tasks=["words", "conversation"], prompts=["a", "b", "c"]), is_base=False)
    assert "and hold a short conversation about stories" in introduction.line
    assert introduction.prompts == ["What can you do?", "a", "b"]


def test_what_is_unknown_is_not_invented():
    assert introduce(None, is_base=False) == introduce(None, is_base=False).__class__()
    general, base = introduce(Purpose(), is_base=False), introduce(Purpose(), is_base=True)
    assert "not trained here" in general.line
    assert len(general.prompts) == len(base.prompts) == 3
    assert "only continues text" in base.line
    assert introduce(Purpose(prompts=["One day"]), is_base=True).prompts == ["One day"]


def test_only_prompts_that_fit_a_screen_are_kept():
    assert prompts_to_try(["", " \n", "x" * (MAX_PROMPT + 1), " a ", "a", "b", "c", "d"]) == ["a", "b", "c"]


def test_examples_lists_the_prompts_in_full_and_sends_one():
    session = session_with(["Who is it about? Once there was a cat. " * 3, "Tell me a story."])
    assert run_command(session, "/examples").rows == [("1", session.examples[0]), ("2", "Tell me a story.")]
    outcome = run_command(session, "/examples 2")
    assert outcome.note.strip() == "Tell me a story."
    list(outcome.reply())
    assert session.last_turn.message == "Tell me a story."


@pytest.mark.parametrize("argument", ["0", "3", "-1", "two", "1 2", "9" * 5000])
def test_a_wrong_number_of_an_example_is_one_sentence(argument):
    with pytest.raises(UserError, match=r"takes a number from 1 to 2, not '"):
        run_command(session_with(["a", "b"]), f"/examples {argument}")


def test_without_examples_the_command_says_why():
    with pytest.raises(UserError, match="doesn't say what it was trained to do"):
        run_command(session_with([]), "/examples")


class Screen(Plain):
    """A terminal at which nothing is typed."""

    def __init__(self, interactive):
        super().__init__()
        self.interactive = interactive

    def read(self):
        raise EOFError


@pytest.mark.parametrize(
    ("interactive", "base", "said"),
    [(True, False, True), (False, False, False), (True, True, True), (False, True, True)],
)
def test_only_a_person_is_told_what_the_model_is_for_but_a_base_model_always_says_so(capsys, interactive, base, said):
    Chat(session_with([], base), Screen(interactive), Purpose(tasks=["words"], prompts=["Tell me\na story."])).run()
    lines = capsys.readouterr().err
    assert ("only continues text" if base else "trained to write a story") in lines if said else not lines
    assert ("1  Tell me a story." in lines) == interactive


def test_a_run_records_its_tasks_and_held_out_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path / "data", n_train=60, n_valid=30)
    tokenizer = tiny_tokenizer()
    save_checkpoint(tmp_path / "base", tiny_model(tokenizer.vocab_size, context_length=512), tokenizer)
    sft = {"pretrained_checkpoint": "base", "dataset_path": "data", "max_steps": 1, "save_dir": "run"}
    result = train(tiny_config(sft=sft, data={"eval_examples": 2, "seq_len": 512, "num_workers": 0}))
    purpose = read_purpose(find_checkpoint(result.folder))
    assert {"words", "summary", "ending"} <= {*purpose.tasks}
    assert len(purpose.prompts) == 3
    stories = (tmp_path / "data").rglob("*valid*.txt")
    held_out = next(path for path in stories).read_text()
    assert any(line in held_out for prompt in purpose.prompts for line in prompt.splitlines() if len(line) > 60)
    info = json.loads((find_checkpoint(result.folder) / META).read_text())["info"]
    assert str(tmp_path) not in json.dumps(info)


class Typed(Screen):
    """A terminal at which these lines are typed."""

    def __init__(self, *lines, interactive=True):
        super().__init__(interactive)
        self.lines = list(lines)

    def read(self):
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


@pytest.mark.parametrize("word", ["exit", "Quit", " quit ", ":q"])
def test_a_person_leaves_the_chat_with_the_word_alone(word):
    front = Typed(word, "Hello")
    Chat(session := session_with([]), front).run()
    assert front.lines == ["Hello"]
    assert session.last_turn is None
    piped = Typed(word, interactive=False)
    Chat(session := session_with([]), piped).run()
    assert session.last_turn.message == word.strip()


def test_who_asks_for_help_gets_a_reply_and_the_command(capsys):
    Chat(session := session_with([]), Typed("help", "Hello")).run()
    assert session.last_turn.message == "Hello"
    assert capsys.readouterr().err.count("/help lists the commands of the chat.") == 1
