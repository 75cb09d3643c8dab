"""The probabilities of a reply's tokens are those that generation computed."""

from dataclasses import replace

import pytest
import torch
from tiny import lively_model, tiny_tokenizer
from token_prob_samples import explanation_of
from tokenizer_samples import llama2c_tokenizer

from mini_chat_gpt.chat.commands import run_command
from mini_chat_gpt.chat.session import ChatSession
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation import decode as decode_module
from mini_chat_gpt.generation import token_probs
from mini_chat_gpt.generation.cpu_model import CPUInferenceModel
from mini_chat_gpt.generation.cpu_weights import has_packed_products
from mini_chat_gpt.generation.decode import decode, random_streams, suppressed_tokens
from mini_chat_gpt.generation.sampling import Sampling, process_logits
from mini_chat_gpt.generation.text import generate, prompt_ids
from mini_chat_gpt.generation.token_probs import Explanation, explain, percent
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

GREEDY = Sampling(temperature=0, max_new_tokens=20)
SETTINGS = [
    GREEDY,
    replace(GREEDY, repetition_penalty=1.5),
    Sampling(temperature=1.0, max_new_tokens=20),
    Sampling(temperature=0.8, top_k=40, max_new_tokens=20),
    Sampling(temperature=2.0, top_p=0.8, min_p=0.01, repetition_penalty=1.3, max_new_tokens=20),
]
PROMPT = "Tom had a red ball 😀"


@pytest.fixture(scope="module")
def chatty() -> ChatTokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat(default_system="Be kind.")
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(chatty) -> dict[str, ChatTokenizer]:
    llama2c_chat = llama2c_tokenizer()
    llama2c_chat.add_control_tokens()
    llama2c_chat.chat_format = ChatFormat()
    return {"chat": chatty, "base": tiny_tokenizer(), "llama2c": llama2c_tokenizer(), "llama2c chat": llama2c_chat}


def model_for(tokenizer: ChatTokenizer, **changes):
    """A table with padding rows, which are as likely as any."""
    return lively_model(tokenizer.vocab_size + 5, **{"context_length": 256} | changes)


class Seen:
    """A reply as the decoding loop came to it: ids, what stopped it, and the probabilities of each step, (V,)."""

    def __init__(self, monkeypatch, model, tokenizer, prompt, sampling, seed=0):
        self.model, self.drawn, self.ids, self.stop_id = [], [], [], None
        logits, choose = model.next_logits, decode_module.next_ids

        def noted_logits(*arguments):
            found = logits(*arguments)
            self.model.append(found[0].float().softmax(dim=-1))
            return found

        def noted_choice(masked, settings, seen, uniforms):
            ids = choose(masked, settings, seen, uniforms)
            whole = process_logits(masked.float(), settings, seen)[0].softmax(dim=-1)
            self.drawn.append(whole if uniforms is not None else torch.zeros_like(whole).index_fill_(0, ids, 1.0))
            return ids

        with monkeypatch.context() as patch:
            patch.setattr(model, "next_logits", noted_logits)
            patch.setattr(decode_module, "next_ids", noted_choice)
            steps = decode(model, tokenizer, [prompt], sampling, random_streams(seed, [0]), prompt_lookup=False)
            for _, token_id, finish in steps:
                if finish == "stop":
                    self.stop_id = token_id
                else:
                    self.ids.append(token_id)

    def explained_by(self, explanation: Explanation, atol: float = 1e-4) -> bool:
        targets = self.ids + ([] if self.stop_id is None else [self.stop_id])
        assert [token.token_id for token in explanation.tokens] == targets
        assert explanation.ended == (self.stop_id is not None)
        for token, model, drawn in zip(explanation.tokens, self.model, self.drawn, strict=True):
            for candidate in (token, *token.others):
                at = candidate.token_id
                assert candidate.probability == pytest.approx(float(model[at]), abs=atol)
                assert candidate.drawn == pytest.approx(float(drawn[at]), abs=atol)
            assert abs(token.rank - 1 - int((model > model[token.token_id]).sum())) <= (atol > 1e-4)
            likeliest = model.clone().index_fill_(0, torch.tensor([token.token_id]), -1.0).topk(len(token.others))
            found = torch.tensor([other.probability for other in token.others])
            torch.testing.assert_close(found, likeliest.values, atol=atol, rtol=0)
        return True


# The numbers


@pytest.mark.parametrize("sampling", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("form", ["GPT", "CPUInferenceModel"])
@pytest.mark.parametrize("kind", ["chat", "base", "llama2c", "llama2c chat"])
def test_the_numbers_are_those_that_generation_saw(monkeypatch, tokenizers, kind, form, sampling):
    tokenizer = tokenizers[kind]
    model = model_for(tokenizer)
    model = CPUInferenceModel(model) if form == "CPUInferenceModel" else model
    prompt = prompt_ids(tokenizer, PROMPT)
    seen = Seen(monkeypatch, model, tokenizer, prompt, sampling)
    assert seen.explained_by(explain(model, tokenizer, prompt, seen.ids, seen.stop_id, sampling))


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("form", ["GPT", "CPUInferenceModel"])
def test_a_long_reply_is_looked_at_in_parts(monkeypatch, chatty, form, at_once):
    monkeypatch.setattr(token_probs, "AT_ONCE", at_once)
    model, sampling = model_for(chatty), SETTINGS[-1]
    model = CPUInferenceModel(model) if form == "CPUInferenceModel" else model
    prompt = prompt_ids(chatty, PROMPT)
    seen = Seen(monkeypatch, model, chatty, prompt, sampling)
    assert len(seen.ids) > at_once
    assert seen.explained_by(explain(model, chatty, prompt, seen.ids, seen.stop_id, sampling))


@pytest.mark.parametrize(
    "changes", [{"position": "learned", "norm": "layernorm"}, {"windows": [8, None], "qk_norm": True}]
)
def test_other_architectures_are_explained_alike(monkeypatch, chatty, changes):
    model, prompt = model_for(chatty, **changes), prompt_ids(chatty, PROMPT)
    seen = Seen(monkeypatch, model, chatty, prompt, GREEDY)
    assert seen.explained_by(explain(model, chatty, prompt, seen.ids, seen.stop_id, GREEDY))


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_with_rounded_weights_the_reply_is_read_as_it_was_generated(monkeypatch, chatty, weights):
    if not has_packed_products():
        pytest.skip("this PyTorch or processor has no FBGEMM")
    model, prompt = CPUInferenceModel(model_for(chatty), weights), prompt_ids(chatty, PROMPT)
    seen = Seen(monkeypatch, model, chatty, prompt, GREEDY)
    assert seen.explained_by(explain(model, chatty, prompt, seen.ids, seen.stop_id, GREEDY), atol=1e-6)


@pytest.mark.parametrize("form", ["GPT", "CPUInferenceModel"])
def test_the_token_that_ends_a_reply_is_explained_too(monkeypatch, chatty, form):
    model, sampling = model_for(chatty), Sampling(temperature=5.0, max_new_tokens=100)
    model = CPUInferenceModel(model) if form == "CPUInferenceModel" else model
    prompt = prompt_ids(chatty, PROMPT)
    replies = (Seen(monkeypatch, model, chatty, prompt, sampling, seed) for seed in range(50))
    seen = next(seen for seen in replies if seen.stop_id is not None)
    explanation = explain(model, chatty, prompt, seen.ids, seen.stop_id, sampling)
    assert seen.explained_by(explanation)
    assert explanation.tokens[-1].text == explanation.tokens[-1].shown
    assert explanation.tokens[-1].shown in ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")


def test_what_is_never_sampled_has_probability_0_as_drawn_and_its_own_as_the_model_has_it(monkeypatch, chatty):
    chatty = tiny_tokenizer()  # of a base: chat tokens neither stop nor are sampled
    model, sampling = model_for(chatty), Sampling(temperature=1.0, max_new_tokens=10)
    prompt, size = prompt_ids(chatty, PROMPT), model.config.vocab_size
    seen = Seen(monkeypatch, model, chatty, prompt, sampling)
    never = set(suppressed_tokens(chatty, size).tolist())
    assert len(never) > 5, "chat tokens and padding"
    for token in explain(model, chatty, prompt, seen.ids, seen.stop_id, sampling, n_others=size).tokens:
        everything = {candidate.token_id: candidate for candidate in (token, *token.others)}
        assert len(everything) == size
        assert {at for at in everything if everything[at].drawn == 0} >= never
        assert all(everything[at].probability > 0 for at in never)
        assert sum(candidate.drawn for candidate in everything.values()) == pytest.approx(1, abs=1e-4)
        assert sum(candidate.probability for candidate in everything.values()) == pytest.approx(1, abs=1e-4)


def test_of_tokens_that_are_equally_likely_a_greedy_reply_took_the_one_it_has(chatty):
    model = model_for(chatty)
    with torch.no_grad():
        model.norm.weight.zero_()  # all logits are 0; which is the highest only rounding could say
    for token in explain(model, chatty, prompt_ids(chatty, "Hi"), [80, 79], None, GREEDY).tokens:
        assert token.drawn == 1
        assert all(other.drawn == 0 for other in token.others)


def test_texts_of_the_tokens_are_the_reply_also_where_characters_have_several(tokenizers):
    for kind, tokenizer in tokenizers.items():
        reply = tokenizer.encode("Hi 🦔! Tom\n\nhad 你好")
        explanation = explain(model_for(tokenizer), tokenizer, prompt_ids(tokenizer, "Tom"), reply, None, GREEDY)
        assert "".join(token.text for token in explanation.tokens).strip() == "Hi 🦔! Tom\n\nhad 你好", kind
        assert any(token.text == "" for token in explanation.tokens), "parts of characters"
        assert all(token.shown.isprintable() for token in explanation.tokens)
    cut = explain(model_for(tokenizer), tokenizer, [1], tokenizer.encode("🦔")[:-1], None, GREEDY)
    assert cut.tokens[-1].text.endswith("\ufffd")


def test_no_token_at_all_is_refused(chatty):
    with pytest.raises(ValueError, match="no token"):
        explain(model_for(chatty), chatty, [1], [], None, GREEDY)


def test_perplexity_and_mean_are_those_of_the_model():
    explanation = explanation_of([0.5, 0.125])
    assert explanation.perplexity == pytest.approx(4)
    assert explanation.mean_probability == pytest.approx(0.3125)
    assert "least sure of “t1” (number 2, 12.5%)" in explanation.summary()


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0, "0%"),
        (1, "100%"),
        (0.9999, ">99.9%"),
        (0.5, "50.0%"),
        (0.012, "1.2%"),
        (0.00034, "0.034%"),
        (1e-7, "<0.001%"),
    ],
)
def test_percents_keep_the_digits_that_matter(p, text):
    assert percent(p) == text


# In a conversation


@pytest.fixture
def session(chatty) -> ChatSession:
    return ChatSession(
        model_for(chatty, context_length=96), chatty, Sampling(temperature=1.0, seed=3, max_new_tokens=12)
    )


def say(session: ChatSession, text: str) -> str:
    return "".join(session.send(text))


def test_a_conversation_is_not_disturbed(chatty, session):
    other = ChatSession(session.model, chatty, session.sampling)
    for text in ("Once", "Tom had a ball", "and then", "Sara was happy"):
        assert say(session, text) == say(other, text)
        session.explain()
        session.explain()
        assert session._cache.lengths == other._cache.lengths
        assert [turn.n_read for turn in session.turns] == [turn.n_read for turn in other.turns]
    assert [turn.reply for turn in session.turns] == [turn.reply for turn in other.turns]


def test_a_reply_after_forgotten_turns_is_explained_from_what_was_read(monkeypatch, chatty, session):
    while not session.n_forgotten:
        say(session, "Tom had a red ball")
    turn = session.asked
    seen = Seen(monkeypatch, CPUInferenceModel(session.model), chatty, turn.prompt, session.sampling, seed=3)
    assert seen.ids == turn.ids
    assert seen.explained_by(session.explain())


def test_settings_that_change_later_are_not_those_of_the_reply(session):
    say(session, "Once")
    before = session.explain()
    run_command(session, "/temp 0")
    assert session.explain() == before


def test_after_an_undo_the_reply_before_is_explained(session):
    say(session, "Once")
    first = session.explain()
    say(session, "Tom")
    assert session.explain() != first
    session.undo()
    assert session.explain() == first


def test_a_reply_that_ended_at_once_is_explained_by_its_end(monkeypatch, session):
    say(session, "Once")
    end = session.tokenizer.end_id
    with monkeypatch.context() as patch:
        patch.setattr(decode_module, "next_ids", lambda *_: torch.tensor([end]))
        assert say(session, "Hi") == ""
    (token,) = session.explain().tokens
    assert token.token_id == end


def test_a_reply_that_was_broken_off_is_explained_as_far_as_it_got(session):
    session.sampling = replace(session.sampling, max_new_tokens=40)
    pieces = session.send("Once")
    next(pieces)
    pieces.close()
    explanation = session.explain()
    assert [token.token_id for token in explanation.tokens] == session.asked.ids
    assert not explanation.ended


def test_without_a_reply_or_with_one_from_a_file_it_says_so(session, tmp_path):
    with pytest.raises(UserError, match="There is no reply yet"):
        run_command(session, "/why")
    say(session, "Once")
    session.save(tmp_path / "chat.json")
    session.load(tmp_path / "chat.json")
    with pytest.raises(UserError, match="is from a file"):
        run_command(session, f"/why {tmp_path / 'why.html'}")
    assert not (tmp_path / "why.html").exists()


def test_the_page_of_a_conversation_is_a_new_file(session, tmp_path):
    say(session, "Once")
    file = tmp_path / "a page.html"
    assert "Wrote" in run_command(session, f'/why "{file}"').note
    before = file.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        run_command(session, f"/why {file}")
    assert file.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", ["did you say that?", "page.txt", ".", "x" * 300 + ".html", "a\0.html"])
def test_what_is_no_name_for_a_page_is_refused_in_a_sentence(session, name):
    say(session, "Once")
    with pytest.raises(UserError) as raised:
        run_command(session, f"/why {name}")
    assert "\n" not in str(raised.value)


def test_an_explained_reply_equals_generates(tokenizers):
    tokenizer = tokenizers["chat"]
    model = model_for(tokenizer)
    session = ChatSession(model, tokenizer, Sampling(temperature=1.0, seed=5, max_new_tokens=30))
    reply = say(session, PROMPT)
    assert reply == generate(model, tokenizer, [PROMPT], temperature=1.0, seed=5, max_new_tokens=30)[0]
