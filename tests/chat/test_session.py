"""A chat session replies as `generate` does, computes no token twice, and drops whole turns when the context is full."""

import json
import os
from dataclasses import replace

import pytest
import torch
from chat_template_samples import MISTRAL3
from tiny import GREEDY, chat_tokenizer, lively_model, tiny_model, tiny_tokenizer

from mini_chat_gpt.chat.session import ChatSession, Turn
from mini_chat_gpt.chat_format import Message, render, render_spans
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import generate, generate_replies, prompt_ids
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_setup import template_format
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

TALK = ["Once upon", "Sara had a red ball 😀", "and then?", "Tom", "little cat", "happy"]


@pytest.fixture(scope="module")
def chat() -> ChatTokenizer:
    return chat_tokenizer("Be kind.")


@pytest.fixture(scope="module")
def base() -> ChatTokenizer:
    return tiny_tokenizer()


def lively(tokenizer: ChatTokenizer, seed: int = 0, **changes) -> GPT:
    return lively_model(tokenizer.vocab_size, seed, **{"context_length": 256} | changes)


class Scripted(GPT):
    """Generates the ids of `script` in every reply, and counts its input tokens."""

    script: tuple[int, ...] = ()
    reply_id = -1  # <|assistant|>, after which a reply begins
    read = 0

    def next_logits(self, ids, cache, n_tokens):
        begins = not any(cache.lengths) or int(ids[0, n_tokens[0] - 1]) == self.reply_id
        self.said = 0 if begins else self.said + 1
        self.read += n_tokens[0]
        logits = torch.zeros_like(super().next_logits(ids, cache, n_tokens))
        logits[:, self.script[self.said]] = 100.0
        return logits


def says(tokenizer: ChatTokenizer, text: str, ends: bool = True, context: int = 256) -> Scripted:
    model = Scripted(tiny_model(tokenizer.vocab_size, context_length=context).config).eval()
    model.reply_id = tokenizer.control.get("<|assistant|>", -1)
    model.script = (*tokenizer.encode(text), *([tokenizer.end_id] if ends else [70] * context))
    return model


def say(session: ChatSession, message: str) -> Turn:
    """Send a message and read the whole reply."""
    return heard(session, session.send(message))


def heard(session: ChatSession, pieces) -> Turn:
    text = "".join(pieces)
    assert session.last_turn is not None
    assert session.last_turn.reply == text
    return session.last_turn


def expected(session: ChatSession, earlier: list[Turn], message: str) -> tuple[int, ...]:
    """The ids of `generate`'s reply to the conversation that ends with `message`, without a cache."""
    messages = [Message("system", session.system)] if session.system else []
    for turn in earlier:
        messages += [Message("user", turn.message), Message("assistant", turn.reply)]
    messages.append(Message("user", message))
    [reply] = generate_replies(session.model, session.tokenizer, [messages], session.sampling, system=None)
    return reply.ids


# A reply is that of the whole conversation


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_replies_equal_those_of_generate_on_the_whole_conversation(chat, seed):
    session = ChatSession(lively(chat, seed, context_length=1024), chat, GREEDY)
    for message in TALK:
        earlier = list(session.turns)
        assert tuple(say(session, message).ids) == expected(session, earlier, message)
    assert session.n_dropped == 0
    assert len({turn.reply for turn in session.turns}) > 2, "the model is too dull to show anything"


def test_replies_after_undo_retry_and_another_system_message_equal_those_of_generate(chat):
    session = ChatSession(lively(chat), chat, GREEDY)
    for message in TALK[:3]:
        say(session, message)
    session.undo()
    assert tuple(say(session, "Tom").ids) == expected(session, session.turns[:2], "Tom")
    assert tuple(heard(session, session.retry()).ids) == expected(session, session.turns[:2], "Tom")
    session.set_system("Rhyme.")
    assert tuple(say(session, "happy").ids) == expected(session, session.turns[:3], "happy")
    session.set_system(None)
    assert tuple(say(session, "ball").ids) == expected(session, session.turns[:4], "ball")
    session.reset()
    assert tuple(say(session, "Once").ids) == expected(session, [], "Once")


def test_replies_after_turns_were_dropped_equal_those_of_generate_on_the_others(chat):
    session = ChatSession(lively(chat, context_length=96), chat, GREEDY)
    for message in TALK:
        earlier = list(session.turns)
        turn = say(session, message)
        assert tuple(turn.ids) == expected(session, earlier[session.n_dropped :], message)
    assert session.n_dropped >= 2


def test_a_sampled_reply_is_that_of_generate_with_the_same_settings_and_seed(chat):
    settings = {"max_new_tokens": 15, "temperature": 1.3, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5}
    session = ChatSession(lively(chat), chat, Sampling(**settings))
    assert say(session, "Once").reply == generate(session.model, chat, ["Once"], **settings)[0]


def test_with_a_seed_a_retry_differs_and_the_session_is_reproducible(chat):
    def replies() -> list[str]:
        session = ChatSession(lively(chat), chat, Sampling(max_new_tokens=15, temperature=1.3, seed=5))
        first = say(session, "Once").reply
        return [first, heard(session, session.retry()).reply, heard(session, session.retry()).reply]

    assert len(set(replies())) == 3
    assert replies() == replies()


def test_the_default_system_message_is_that_of_the_model(chat):
    model = lively(chat)
    assert ChatSession(model, chat).system == "Be kind."
    assert ChatSession(model, chat, system=None).system is None
    assert ChatSession(model, chat, system="Rhyme.").system == "Rhyme."


# Nothing is read twice


def test_tokens_in_the_cache_are_not_computed_again(chat):
    model = says(chat, "there was a cat")
    session = ChatSession(model, chat)
    say(session, "Once upon")
    model.read = 0
    turn = say(session, "Tom")
    # <|endoftext|><|user|>Tom<|assistant|>, the last token of the reply, and then the reply itself but for its last token.
    assert turn.n_prefilled == len(chat.encode("Tom")) + 3
    assert model.read == turn.n_prefilled + len(turn.ids)


def test_a_retry_computes_only_the_last_token_of_the_prompt(chat):
    session = ChatSession(says(chat, "there was a cat"), chat)
    say(session, "Once upon")
    assert heard(session, session.retry()).n_prefilled == 1


def test_after_undo_the_cache_still_holds_the_earlier_turns(chat):
    session = ChatSession(says(chat, "there was a cat"), chat)
    for message in ("Once upon", "Tom"):
        say(session, message)
    session.undo()
    assert say(session, "Sara").n_prefilled == len(chat.encode("Sara")) + 1  # <|user|> was there before


# How a reply ends, and what is kept of it


def test_an_interrupted_reply_is_kept_and_the_chat_continues(chat):
    session = ChatSession(lively(chat), chat, replace(GREEDY, max_new_tokens=60))
    pieces = session.send("Once upon")
    text = next(pieces) + next(pieces)
    del pieces
    [turn] = session.turns
    assert (turn.reply, turn.finish_reason) == (text, "interrupted")
    assert tuple(say(session, "Tom").ids) == expected(session, [turn], "Tom")


def test_after_an_interrupt_inside_the_model_the_chat_continues(chat):
    session = ChatSession(model := lively(chat), chat, GREEDY)
    calls, whole = 0, model.next_logits

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 6:
            whole(*arguments)
            raise KeyboardInterrupt
        return whole(*arguments)

    model.next_logits = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(session.send("Once upon"))
    [turn] = session.turns
    assert turn.finish_reason == "interrupted"
    assert len(turn.ids) == 5
    assert tuple(say(session, "Tom").ids) == expected(session, [turn], "Tom")


def test_an_unfinished_reply_ends_when_another_message_is_sent(chat):
    session = ChatSession(lively(chat), chat, GREEDY)
    old = session.send("Once upon")
    next(old)
    earlier = list(session.turns)
    new = say(session, "Tom")
    assert list(old) == []
    assert tuple(new.ids) == expected(session, earlier, "Tom")


@pytest.mark.parametrize(("limit", "reason"), [(5, "length"), (1000, "context")])
def test_a_reply_that_is_cut_off_says_why(chat, limit, reason):
    session = ChatSession(says(chat, "there", ends=False), chat, Sampling(max_new_tokens=limit))
    turn = say(session, "Once upon")
    assert turn.finish_reason == reason
    if reason == "context":
        assert session.usage().used == session.usage().context


def test_pieces_are_whole_characters(chat):
    session = ChatSession(says(chat, "Hi 🦔!"), chat)
    pieces = list(session.send("Once"))
    assert "".join(pieces) == "Hi 🦔!"
    assert any("🦔" in piece for piece in pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_message_without_a_reply_is_not_kept_but_can_be_sent_again(chat):
    session = ChatSession(model := says(chat, ""), chat)
    assert say(session, "Once").reply == ""
    assert session.turns == []
    model.script = says(chat, "there was").script
    heard(session, session.retry())
    assert [(turn.message, turn.reply) for turn in session.turns] == [("Once", "there was")]


def test_a_retry_without_text_keeps_the_old_reply(chat):
    session = ChatSession(model := says(chat, "there was"), chat)
    say(session, "Once")
    old, model.script = model.script, says(chat, "").script
    heard(session, session.retry())
    assert [turn.reply for turn in session.turns] == ["there was"]
    model.script = old
    heard(session, session.retry())
    assert [turn.reply for turn in session.turns] == ["there was"]


def test_undo_removes_one_turn_after_the_other(chat):
    session = ChatSession(says(chat, "there was"), chat)
    for message in ("Once", "Tom"):
        say(session, message)
    assert session.undo().message == "Tom"
    assert heard(session, session.retry()).message == "Once"
    session.undo()
    with pytest.raises(UserError, match="conversation is empty"):
        session.undo()
    with pytest.raises(UserError, match="no message yet"):
        session.retry()


# A full context


def test_the_oldest_turns_are_dropped_and_return_when_there_is_room(chat):
    session = ChatSession(says(chat, "there was a cat", context=80), chat, GREEDY)
    forgotten = []
    for message in TALK:
        say(session, message)
        forgotten.append(session.n_dropped)
    assert forgotten == sorted(forgotten)
    assert 0 == forgotten[0] < forgotten[-1]
    for _ in range(4):
        session.undo()
    say(session, "Tom")
    assert session.n_dropped == 0


def test_no_more_turns_are_dropped_than_necessary(chat):
    session = ChatSession(says(chat, "there was a cat", context=80), chat, GREEDY)
    for message in TALK:
        earlier = list(session.turns)
        say(session, message)
        kept = earlier[max(0, session.n_dropped - 1) :]
        one_more = [Message("system", "Be kind.")]
        for turn in kept:
            one_more += [Message("user", turn.message), Message("assistant", turn.reply)]
        ids, _ = render([*one_more, Message("user", message)], chat, add_generation_prompt=True)
        assert (len(ids) + session.room_for_reply > 80) == (session.n_dropped > 0)


def test_a_retry_of_a_reply_that_the_context_cut_off_drops_older_turns(chat):
    session = ChatSession(says(chat, "there", ends=False, context=128), chat, Sampling(max_new_tokens=30))
    for _ in range(2):
        say(session, "Once")
    session.sampling = Sampling(max_new_tokens=60)
    assert say(session, "Tom").finish_reason == "context"
    for _ in range(2):  # and it stays so
        turn = heard(session, session.retry())
        assert (turn.finish_reason, len(turn.ids)) == ("length", 60)
        assert session.n_dropped == 1
    assert [turn.message for turn in session.turns] == ["Once", "Once", "Tom"]


def test_a_message_longer_than_the_context_is_an_error_and_changes_nothing(chat):
    session = ChatSession(says(chat, "there was", context=64), chat, GREEDY)
    say(session, "Once")
    n_around = (
        len(render([Message("system", "Be kind."), Message("user", "a")], chat, add_generation_prompt=True)[0]) - 1
    )
    fit = 63 - n_around
    with pytest.raises(UserError, match=f"has 100 tokens, and at most {fit} fit into the model's context of 64 with"):
        session.send("a" * 100)
    assert [turn.message for turn in session.turns] == ["Once"]
    assert session.n_dropped == 0
    assert say(session, "a" * fit).finish_reason == "context"
    with pytest.raises(UserError, match=f"at most {fit} fit"):
        session.send("a" * (fit + 1))


def test_usage_adds_up_to_the_length_of_the_prompt(chat):
    session = ChatSession(says(chat, "there was a cat"), chat)
    for message in TALK[:3]:
        say(session, message)
    usage = session.usage()
    assert usage.used == len(render(session.messages, chat)[0])
    assert len(usage.turns) == 3
    session.reset()
    assert session.usage().used == usage.system == len(render([Message("system", "Be kind.")], chat)[0])


def test_a_system_message_that_leaves_no_room_is_an_error(chat):
    session = ChatSession(says(chat, "there", context=64), chat)
    with pytest.raises(UserError, match="leaves no room in the model's context of 64"):
        session.set_system("a" * 62)
    assert session.system == "Be kind."
    with pytest.raises(UserError, match="leaves no room"):
        ChatSession(says(chat, "there", context=64), chat, system="a" * 62)


# Base models


def test_a_base_model_continues_each_text_separately(base):
    session = ChatSession(lively(base), base, GREEDY)
    for text in ("Once upon a", "Sara had ", "Once upon a time"):
        assert say(session, text).reply == generate(session.model, base, [text], temperature=0, max_new_tokens=20)[0]


def test_a_base_model_has_no_system_message_and_no_conversation(base, tmp_path):
    session = ChatSession(lively(base), base)
    for attempt in (lambda: session.set_system("Rhyme."), lambda: session.load(tmp_path / "chat.json")):
        with pytest.raises(UserError, match="base model without a chat format"):
            attempt()
    with pytest.raises(UserError, match="base model without a chat format"):
        ChatSession(lively(base), base, system="Rhyme.")


def test_llama2cs_leading_space_is_kept_in_a_continuation(real_data):
    tokenizer = ChatTokenizer.from_llama2c(real_data / "stories260K" / "tok512.bin")
    model = says(tokenizer, "there was", ends=False)
    model.script = (*tokenizer.encode("there was a cat"), tokenizer.control["</s>"])
    assert say(ChatSession(model, tokenizer), "Once").reply == " there was a cat"


# Saving and loading


def test_a_saved_conversation_can_be_continued(chat, tmp_path):
    session = ChatSession(lively(chat), chat, GREEDY, system="Rhyme.")
    for message in TALK[:3]:
        say(session, message)
    session.save(tmp_path / "chat.json")
    other = ChatSession(lively(chat), chat)
    other.load(tmp_path / "chat.json")
    assert (other.messages, other.sampling) == (session.messages, session.sampling)
    assert say(other, "Tom").ids == say(session, "Tom").ids


def test_the_file_has_messages_and_settings_in_the_usual_form(chat, tmp_path):
    session = ChatSession(says(chat, "there was"), chat, Sampling(seed=3))
    say(session, "Once \ud800😀")
    session.save(tmp_path / "chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    assert saved["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Once \ufffd😀"},
        {"role": "assistant", "content": "there was"},
    ]
    assert saved["settings"]["seed"] == 3


def test_dropped_turns_are_saved_too(chat, tmp_path):
    session = ChatSession(says(chat, "there was a cat", context=80), chat, GREEDY)
    for message in TALK:
        say(session, message)
    session.save(tmp_path / "chat.json")
    other = ChatSession(session.model, chat)
    other.load(tmp_path / "chat.json")
    assert [turn.message for turn in other.turns] == TALK
    assert other.usage().used <= 80


def test_a_file_is_overwritten_only_with_overwrite(chat, tmp_path):
    session = ChatSession(says(chat, "there was"), chat)
    file = tmp_path / "chat.json"
    with pytest.raises(UserError, match="nothing to save"):
        session.save(file)
    say(session, "Once")
    file.write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match="exists already"):
        session.save(file)
    assert file.read_text(encoding="utf-8") == "precious"
    session.save(file, overwrite=True)
    assert "there was" in file.read_text(encoding="utf-8")


def test_a_user_message_at_the_end_of_a_file_waits_for_its_reply(chat, tmp_path):
    (tmp_path / "chat.json").write_text('{"messages": [{"role": "user", "content": "Once"}]}', encoding="utf-8")
    session = ChatSession(lively(chat), chat, GREEDY)
    session.load(tmp_path / "chat.json")
    assert (session.turns, session.system, session.sampling) == ([], None, GREEDY)
    assert tuple(heard(session, session.retry()).ids) == expected(session, [], "Once")


ONCE = '{"role": "user", "content": "Once"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON .*recursion limit"),
        (b'{"messages": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not valid JSON .*recursion limit"),
        (b'{"messages": [], "x": ' + b"9" * 5000 + b"}", "number out of range"),
        (b"[]", r"the file must be a mapping .*; a saved chat is {"),
        (b"null", "the file must be a mapping"),
        (b'{"messages": "Hi"}', "messages must be a list"),
        (b'{"messages": {"role": "user"}}', "messages must be a list"),
        (b'{"settings": {}}', "is not a conversation: messages is missing"),
        (b'{"messages": []}', "The conversation is empty"),
        (b'{"messages": ["Hi"]}', "messages.0 must be a mapping"),
        (b'{"messages": [{"role": "user"}]}', "messages.0.content is missing"),
        (b'{"messages": [{"role": ["user"], "content": "Hi"}]}', "messages.0.role must be text"),
        (b'{"messages": [{"role": "robot", "content": "Hi"}]}', "'robot'; the roles are"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "messages.0.content must be text"),
        (b'{"messages": [{"role": "assistant", "content": "Hi"}]}', "must follow a user message"),
        (f'{{"messages": [{ONCE}, {ONCE}]}}'.encode(), "follows another user message"),
        (f'{{"messages": [{ONCE}], "settings": []}}'.encode(), "settings must be a mapping"),
        (f'{{"messages": [{ONCE}], "settings": {{"seed": "1"}}}}'.encode(), "settings.seed"),
        (f'{{"messages": [{ONCE}], "settings": {{"top_k": true}}}}'.encode(), "settings.top_k"),
        (f'{{"messages": [{ONCE}], "settings": {{"temperature": NaN}}}}'.encode(), "not valid JSON|temperature"),
        (
            f'{{"messages": [{ONCE}], "settings": {{"temperature": 1e999}}}}'.encode(),
            "settings.temperature|temperature is",
        ),
        (f'{{"messages": [{ONCE}], "settings": {{"temp": 1}}}}'.encode(), "no setting 'temp'; did you mean"),
        (f'{{"messages": [{ONCE}], "settings": {{"top_p": 7}}}}'.encode(), "top_p is 7; it must be"),
        (
            f'{{"messages": [{ONCE}], "settings": {{"temperature": 1{"0" * 400}}}}}'.encode(),
            "temperature is 1000.*; it must",
        ),
        (f'{{"messages": [{ONCE}], "settings": {{"top_k": 1{"0" * 400}}}}}'.encode(), "top_k is 1000.*; it must"),
        (None, "can't be read: No such file"),
    ],
)
def test_a_bad_file_is_one_clear_sentence_and_changes_nothing(chat, tmp_path, content, message):
    session = ChatSession(says(chat, "there was"), chat)
    say(session, "Tom")
    before = (session.messages, session.sampling)
    if content is not None:
        (tmp_path / "chat.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        session.load(tmp_path / "chat.json")
    assert str(raised.value).startswith(str(tmp_path / "chat.json"))
    assert "\n" not in str(raised.value)
    assert (session.messages, session.sampling) == before


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_folder_a_pipe_or_a_device_is_not_loaded_and_not_replaced(chat, tmp_path, make):
    session = ChatSession(says(chat, "there was"), chat)
    say(session, "Tom")
    before = session.messages
    path = tmp_path / "chat.json"
    make(path)
    kind = path.lstat().st_mode
    with pytest.raises(UserError, match=r"can't be read \((is a directory|not a regular file)\)"):
        session.load(path)
    with pytest.raises(UserError, match=r"is a folder|is not a regular file"):
        session.save(path, overwrite=True)
    assert session.messages == before
    assert path.lstat().st_mode == kind


def test_a_byte_order_mark_before_a_saved_conversation_is_ignored(chat, tmp_path):
    session = ChatSession(says(chat, "there was"), chat)
    (tmp_path / "chat.json").write_bytes(b"\xef\xbb\xbf" + f'{{"messages": [{ONCE}]}}'.encode())
    session.load(tmp_path / "chat.json")
    assert session.last_turn.message == "Once"


def test_a_message_after_thousands_of_turns_renders_only_those_that_fit(chat, tmp_path, monkeypatch):
    session = ChatSession(lively(chat), chat, GREEDY)
    turn = [{"role": "user", "content": "Tom"}, {"role": "assistant", "content": "ran"}]
    (tmp_path / "chat.json").write_text(json.dumps({"messages": turn * 5000}))
    session.load(tmp_path / "chat.json")
    n_rendered = []

    def counting(messages, *more, **named):
        n_rendered.append(len(messages))
        return render_spans(messages, *more, **named)

    monkeypatch.setattr("mini_chat_gpt.chat.session.render_spans", counting)
    say(session, "Sara")
    assert sum(n_rendered) < 100
    assert session.n_dropped > 4900
    kept = session.turns[session.n_dropped : -1]
    assert session.last_turn.prompt == prompt_ids(
        chat, [*session._conversation(kept), Message("user", "Sara")], session.system
    )


def test_a_conversation_is_saved_until_it_changes(chat, tmp_path):
    session = ChatSession(says(chat, "there was"), chat)
    assert session.is_saved
    say(session, "Tom")
    assert not session.is_saved
    session.save(tmp_path / "chat.json")
    assert session.is_saved
    session.undo()
    say(session, "Sara")
    assert not session.is_saved


def test_a_system_message_that_a_template_merges_into_the_last_message_is_in_every_prompt():
    tokenizer = tiny_tokenizer()
    tokenizer.add_control_tokens(("[INST]", "[/INST]", "</s>"))
    tokenizer.chat_format = template_format(tokenizer, MISTRAL3.replace("eos_token", "'</s>'"))
    session = ChatSession(lively(tokenizer, seed=1), tokenizer, GREEDY, "Be kind.")
    for message in TALK[:3]:
        say(session, message)
        prompt = tokenizer.decode(session.last_turn.prompt, control=True)
        assert prompt.endswith(f"[INST] Be kind.\n\n{message}[/INST]")
        assert prompt.count("Be kind.") == 1
    usage = session.usage()
    assert usage.system > 0
    assert len(usage.turns) == 3
