"""The reported token probabilities equal those that generation computed."""

from dataclasses import replace

import pytest
import torch
from tiny import GREEDY, chat_tokenizer, lively_model, tiny_tokenizer
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
    return chat_tokenizer("Be kind.")


@pytest.fixture(scope="module")
def tokenizers(chatty) -> dict[str, ChatTokenizer]:
    llama2c_chat = llama2c_tokenizer()
    llama2c_chat.add_control_tokens()
    llama2c_chat.chat_format = ChatFormat()
    return {"chat": chatty, "base": tiny_tokenizer(), "llama2c": llama2c_tokenizer(), "llama2c chat": llama2c_chat}


def model_for(tokenizer: ChatTokenizer, **changes):
    """A model whose token table has padding rows."""
    return lively_model(tokenizer.vocab_size + 5, **{"context_length": 256} | changes)


class RecordedReply:
    """A reply recorded from the decoding loop: ids, stop token, and for each step the probabilities (V,) of model and sampling."""

    def __init__(self, monkeypatch, model, tokenizer, prompt, sampling, seed=0):
        self.model, self.sampling, self.ids, self.stop_id = [], [], [], None
        logits, choose = model.next_logits, decode_module.next_ids

        def recording_logits(*arguments):
            result = logits(*arguments)
            self.model.append(result[0].float().softmax(dim=-1))
            return result

        def recording_choice(masked, settings, seen, uniforms):
            ids = choose(masked, settings, seen, uniforms)
            probs = process_logits(masked.float(), settings, seen)[0].softmax(dim=-1)
            self.sampling.append(probs if uniforms is not None else torch.zeros_like(probs).index_fill_(0, ids, 1.0))
            return ids

        with monkeypatch.context() as patch:
            patch.setattr(model, "next_logits", recording_logits)
            patch.setattr(decode_module, "next_ids", recording_choice)
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
        for token, model, sampling in zip(explanation.tokens, self.model, self.sampling, strict=True):
            for candidate in (token, *token.others):
                at = candidate.token_id
                assert candidate.probability == pytest.approx(float(model[at]), abs=atol)
                assert candidate.sampling_probability == pytest.approx(float(sampling[at]), abs=atol)
            assert abs(token.rank - 1 - int((model > model[token.token_id]).sum())) <= (atol > 1e-4)
            expected = model.clone().index_fill_(0, torch.tensor([token.token_id]), -1.0).topk(len(token.others))
            probabilities = torch.tensor([other.probability for other in token.others])
            torch.testing.assert_close(probabilities, expected.values, atol=atol, rtol=0)
        return True


# Probabilities


@pytest.mark.parametrize("sampling", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("form", ["GPT", "CPUInferenceModel"])
@pytest.mark.parametrize("kind", ["chat", "base", "llama2c", "llama2c chat"])
def test_probabilities_equal_those_of_generation(monkeypatch, tokenizers, kind, form, sampling):
    tokenizer = tokenizers[kind]
    model = model_for(tokenizer)
    model = CPUInferenceModel(model) if form == "CPUInferenceModel" else model
    prompt = prompt_ids(tokenizer, PROMPT)
    recorded = RecordedReply(monkeypatch, model, tokenizer, prompt, sampling)
    assert recorded.explained_by(explain(model, tokenizer, prompt, recorded.ids, recorded.stop_id, sampling))


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("form", ["GPT", "CPUInferenceModel"])
def test_long_replies_are_processed_in_chunks(monkeypatch, chatty, form, chunk):
    monkeypatch.setattr(token_probs, "CHUNK", chunk)
    model, sampling = model_for(chatty), SETTINGS[-1]
    model = CPUInferenceModel(model) if form == "CPUInferenceModel" else model
    prompt = prompt_ids(chatty, PROMPT)
    recorded = RecordedReply(monkeypatch, model, chatty, prompt, sampling)
    assert len(recorded.ids) > chunk
    assert recorded.explained_by(explain(model, chatty, prompt, recorded.ids, recorded.stop_id, sampling))


@pytest.mark.parametrize(
    "changes", [{"position": "learned", "norm": "layernorm"}, {"windows": [8, None], "qk_norm": True}]
)
def test_other_architectures_are_explained_too(monkeypatch, chatty, changes):
    model, prompt = model_for(chatty, **changes), prompt_ids(chatty, PROMPT)
    recorded = RecordedReply(monkeypatch, model, chatty, prompt, GREEDY)
    assert recorded.explained_by(explain(model, chatty, prompt, recorded.ids, recorded.stop_id, GREEDY))


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_rounded_weights_are_read_as_in_generation(monkeypatch, chatty, weights):
    if not has_packed_products():
        pytest.skip("this PyTorch or processor has no FBGEMM")
    model, prompt = CPUInferenceModel(model_for(chatty), weights), prompt_ids(chatty, PROMPT)
    recorded = RecordedReply(monkeypatch, model, chatty, prompt, GREEDY)
    assert recorded.explained_by(explain(model, chatty, prompt, recorded.ids, recorded.stop_id, GREEDY), atol=1e-6)


@pytest.mark.parametrize("form", ["GPT", "CPUInferenceModel"])
def test_the_stop_token_is_explained_too(monkeypatch, chatty, form):
    model, sampling = model_for(chatty), Sampling(temperature=5.0, max_new_tokens=100)
    model = CPUInferenceModel(model) if form == "CPUInferenceModel" else model
    prompt = prompt_ids(chatty, PROMPT)
    replies = (RecordedReply(monkeypatch, model, chatty, prompt, sampling, seed) for seed in range(50))
    recorded = next(recorded for recorded in replies if recorded.stop_id is not None)
    explanation = explain(model, chatty, prompt, recorded.ids, recorded.stop_id, sampling)
    assert recorded.explained_by(explanation)
    assert explanation.tokens[-1].text == explanation.tokens[-1].shown
    assert explanation.tokens[-1].shown in ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")


def test_suppressed_tokens_have_sampling_probability_0_and_keep_the_models_probability(monkeypatch, chatty):
    chatty = tiny_tokenizer()  # a base model: chat tokens are suppressed instead of stopping the reply
    model, sampling = model_for(chatty), Sampling(temperature=1.0, max_new_tokens=10)
    prompt, size = prompt_ids(chatty, PROMPT), model.config.vocab_size
    recorded = RecordedReply(monkeypatch, model, chatty, prompt, sampling)
    suppressed = set(suppressed_tokens(chatty, size).tolist())
    assert len(suppressed) > 5, "chat tokens and padding"
    for token in explain(model, chatty, prompt, recorded.ids, recorded.stop_id, sampling, n_others=size).tokens:
        everything = {candidate.token_id: candidate for candidate in (token, *token.others)}
        assert len(everything) == size
        assert {at for at in everything if everything[at].sampling_probability == 0} >= suppressed
        assert all(everything[at].probability > 0 for at in suppressed)
        assert sum(candidate.sampling_probability for candidate in everything.values()) == pytest.approx(1, abs=1e-4)
        assert sum(candidate.probability for candidate in everything.values()) == pytest.approx(1, abs=1e-4)


def test_among_tied_tokens_a_greedy_reply_keeps_the_token_it_has(chatty):
    model = model_for(chatty)
    with torch.no_grad():
        model.norm.weight.zero_()  # all logits are 0
    for token in explain(model, chatty, prompt_ids(chatty, "Hi"), [80, 79], None, GREEDY).tokens:
        assert token.sampling_probability == 1
        assert all(other.sampling_probability == 0 for other in token.others)


def test_token_texts_joined_are_the_reply_even_if_characters_span_several_tokens(tokenizers):
    for kind, tokenizer in tokenizers.items():
        reply = tokenizer.encode("Hi 🦔! Tom\n\nhad 你好")
        explanation = explain(model_for(tokenizer), tokenizer, prompt_ids(tokenizer, "Tom"), reply, None, GREEDY)
        assert "".join(token.text for token in explanation.tokens).strip() == "Hi 🦔! Tom\n\nhad 你好", kind
        assert any(token.text == "" for token in explanation.tokens), "parts of characters"
        assert all(token.shown.isprintable() for token in explanation.tokens)
    cut = explain(model_for(tokenizer), tokenizer, [1], tokenizer.encode("🦔")[:-1], None, GREEDY)
    assert cut.tokens[-1].text.endswith("\ufffd")


def test_an_empty_reply_is_rejected(chatty):
    with pytest.raises(ValueError, match="no token"):
        explain(model_for(chatty), chatty, [1], [], None, GREEDY)


def test_perplexity_and_mean_use_the_models_probabilities():
    explanation = explanation_of([0.5, 0.125])
    assert explanation.perplexity == pytest.approx(4)
    assert explanation.mean_probability == pytest.approx(0.3125)
    assert "least likely “t1” (token 2, 12.5%)" in explanation.summary()


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
def test_percentages_keep_significant_digits(p, text):
    assert percent(p) == text


# In a conversation


@pytest.fixture
def session(chatty) -> ChatSession:
    return ChatSession(
        model_for(chatty, context_length=96), chatty, Sampling(temperature=1.0, seed=3, max_new_tokens=12)
    )


def say(session: ChatSession, text: str) -> str:
    return "".join(session.send(text))


def test_explaining_does_not_change_the_conversation(chatty, session):
    other = ChatSession(session.model, chatty, session.sampling)
    for text in ("Once", "Tom had a ball", "and then", "Sara was happy"):
        assert say(session, text) == say(other, text)
        session.explain()
        session.explain()
        assert session._cache.lengths == other._cache.lengths
        assert [turn.n_prefilled for turn in session.turns] == [turn.n_prefilled for turn in other.turns]
    assert [turn.reply for turn in session.turns] == [turn.reply for turn in other.turns]


def test_after_dropped_turns_the_prompt_that_was_read_is_explained(monkeypatch, chatty, session):
    while not session.n_dropped:
        say(session, "Tom had a red ball")
    turn = session.last_turn
    recorded = RecordedReply(
        monkeypatch, CPUInferenceModel(session.model), chatty, turn.prompt, session.sampling, seed=3
    )
    assert recorded.ids == turn.ids
    assert recorded.explained_by(session.explain())


def test_later_changes_of_settings_do_not_change_the_explanation(session):
    say(session, "Once")
    before = session.explain()
    run_command(session, "/temp 0")
    assert session.explain() == before


def test_after_an_undo_the_previous_reply_is_explained(session):
    say(session, "Once")
    first = session.explain()
    say(session, "Tom")
    assert session.explain() != first
    session.undo()
    assert session.explain() == first


def test_an_empty_reply_is_explained_by_its_stop_token(monkeypatch, session):
    say(session, "Once")
    end = session.tokenizer.end_id
    with monkeypatch.context() as patch:
        patch.setattr(decode_module, "next_ids", lambda *_: torch.tensor([end]))
        assert say(session, "Hi") == ""
    (token,) = session.explain().tokens
    assert token.token_id == end


def test_an_interrupted_reply_is_explained_up_to_the_interruption(session):
    session.sampling = replace(session.sampling, max_new_tokens=40)
    pieces = session.send("Once")
    next(pieces)
    pieces.close()
    explanation = session.explain()
    assert [token.token_id for token in explanation.tokens] == session.last_turn.ids
    assert not explanation.ended


def test_without_a_generated_reply_there_is_an_error(session, tmp_path):
    with pytest.raises(UserError, match="There is no reply yet"):
        run_command(session, "/why")
    say(session, "Once")
    session.save(tmp_path / "chat.json")
    session.load(tmp_path / "chat.json")
    with pytest.raises(UserError, match="is from a file"):
        run_command(session, f"/why {tmp_path / 'why.html'}")
    assert not (tmp_path / "why.html").exists()


def test_the_page_does_not_overwrite_a_file(session, tmp_path):
    say(session, "Once")
    file = tmp_path / "a page.html"
    assert "Wrote" in run_command(session, f'/why "{file}"').note
    before = file.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        run_command(session, f"/why {file}")
    assert file.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", ["did you say that?", "page.txt", ".", "x" * 300 + ".html", "a\0.html"])
def test_an_invalid_page_name_is_reported_in_one_sentence(session, name):
    say(session, "Once")
    with pytest.raises(UserError) as raised:
        run_command(session, f"/why {name}")
    assert "\n" not in str(raised.value)


def test_the_reply_in_a_session_equals_generates(tokenizers):
    tokenizer = tokenizers["chat"]
    model = model_for(tokenizer)
    session = ChatSession(model, tokenizer, Sampling(temperature=1.0, seed=5, max_new_tokens=30))
    reply = say(session, PROMPT)
    assert reply == generate(model, tokenizer, [PROMPT], temperature=1.0, seed=5, max_new_tokens=30)[0]
