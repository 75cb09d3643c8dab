"""Generation equals that of transformers; how prompts are encoded, how replies end, and streaming."""

from dataclasses import replace

import pytest
import torch
from tiny import GREEDY, PROMPTS, chat_tokenizer, lively, tiny_model, tiny_tokenizer

from mini_chat_gpt.chat_format import ChatFormat, Message, render
from mini_chat_gpt.checkpoints.hf import to_hf_config, to_hf_state
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.decode import suppressed_tokens
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import Reply, generate, generate_replies, prompt_ids, stream
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer


@pytest.fixture(scope="module")
def base() -> ChatTokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def chat() -> ChatTokenizer:
    return chat_tokenizer()


class Scripted(GPT):
    """A model that generates the ids of `script` for any prompt."""

    script: tuple[int, ...] = ()

    def next_logits(self, ids, cache, n_tokens):
        self.n_generated = self.n_generated + 1 if any(cache.lengths) else 0
        logits = torch.zeros_like(super().next_logits(ids, cache, n_tokens))
        logits[:, self.script[self.n_generated]] = 100.0
        return logits


def says(tokenizer: ChatTokenizer, ids: list[int]) -> GPT:
    model = Scripted(tiny_model(tokenizer.vocab_size).config)
    model.script = tuple(ids)
    return model


def their_reply(model: GPT, tokenizer: ChatTokenizer, ids: list[int], **settings) -> tuple[int, ...]:
    """The reply of transformers' Llama with the same weights, without the stop token."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(LlamaConfig(**to_hf_config(model.config, tokenizer))).eval()
    theirs.load_state_dict(to_hf_state(model.state_dict(), model.config), strict=False)
    theirs.tie_weights()
    banned = suppressed_tokens(tokenizer, model.config.vocab_size).tolist()
    stops = sorted(tokenizer.stop_ids)
    settings |= {"do_sample": False, "eos_token_id": stops, "pad_token_id": 0, "suppress_tokens": banned or None}
    said = theirs.generate(torch.tensor([ids]), generation_config=GenerationConfig(**settings))[0, len(ids) :].tolist()
    return tuple(said[:-1] if said[-1] in stops else said)


# Replies


@pytest.mark.parametrize("kind", ["base", "chat"])
def test_greedy_replies_equal_those_of_transformers(kind, request):
    tokenizer = request.getfixturevalue(kind)
    model = lively(tokenizer)
    prompts = [prompt for prompt in PROMPTS if prompt]
    for prompt, reply in zip(prompts, generate_replies(model, tokenizer, prompts, GREEDY), strict=True):
        assert reply.ids == their_reply(model, tokenizer, prompt_ids(tokenizer, prompt), max_new_tokens=20)


def test_a_repetition_penalty_changes_greedy_replies_as_in_transformers(base):
    model = lively(base)
    [plain] = generate_replies(model, base, ["Once upon a time"], GREEDY)
    [reply] = generate_replies(model, base, ["Once upon a time"], replace(GREEDY, repetition_penalty=1.5))
    ids = prompt_ids(base, "Once upon a time")
    assert reply.ids == their_reply(model, base, ids, max_new_tokens=20, repetition_penalty=1.5)
    assert reply.ids != plain.ids


def test_a_stop_token_in_the_prompt_is_not_penalized(base):
    model = says(base, [base.end_id])
    [reply] = generate_replies(model, base, ["Once"], Sampling(temperature=0, repetition_penalty=1e6))
    assert reply.finish_reason == "stop"


def test_the_seed_determines_the_replies(base):
    model = lively(base)
    first = generate(model, base, PROMPTS, max_new_tokens=20, temperature=1.0, seed=1)
    assert first == generate(model, base, PROMPTS, max_new_tokens=20, temperature=1.0, seed=1)
    assert first != generate(model, base, PROMPTS, max_new_tokens=20, temperature=1.0, seed=2)


def test_without_a_seed_replies_differ(base):
    model = lively(base)
    assert len({tuple(generate(model, base, PROMPTS, max_new_tokens=20, temperature=1.0)) for _ in range(3)}) > 1


def test_equal_prompts_in_a_batch_get_independent_replies(base):
    first, second = generate(lively(base), base, ["Once", "Once"], max_new_tokens=20, temperature=1.0, seed=3)
    assert first != second


def test_sampling_does_not_use_torchs_global_generator(base):
    model, state = lively(base), torch.get_rng_state()
    first = generate(model, base, ["Once"], max_new_tokens=20, temperature=1.0, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert generate(model, base, ["Once"], max_new_tokens=20, temperature=1.0, seed=3) == first


def test_generation_leaves_no_gradients_behind(base):
    model = lively(base)
    generate(model, base, ["Once"], max_new_tokens=3)
    assert not torch.is_inference_mode_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


# How a reply ends


def test_a_reply_ends_before_the_stop_token(base):
    ids = base.encode("Tom was happy")
    [reply] = generate_replies(says(base, [*ids, base.end_id, 5]), base, ["Once"])
    assert reply == Reply("Tom was happy", tuple(ids), "stop", 1 + len(base.encode("Once")), base.document_id)


def test_a_reply_may_be_empty(base):
    assert generate(says(base, [base.end_id]), base, ["Once"]) == [""]


def test_a_reply_has_at_most_max_new_tokens(base):
    [reply] = generate_replies(says(base, [70] * 50), base, ["Once"], Sampling(max_new_tokens=7))
    assert (len(reply.ids), reply.finish_reason) == (7, "length")


@pytest.mark.parametrize("batch", [1, 3])
def test_prompt_and_reply_fill_the_context_exactly(base, batch):
    prompts = ["Once", "On", "O"][:batch]
    [reply, *_] = generate_replies(says(base, [70] * 100), base, prompts, Sampling(max_new_tokens=500))
    assert (reply.n_prompt + len(reply.ids), reply.finish_reason) == (64, "context")


def test_a_prompt_may_leave_room_for_a_single_token(base):
    [reply] = generate_replies(says(base, [70] * 100), base, ["a" * 62])
    assert (reply.n_prompt, len(reply.ids), reply.finish_reason) == (63, 1, "context")


def test_a_prompt_that_fills_the_context_is_rejected_with_a_remedy(base):
    with pytest.raises(UserError) as caught:
        generate(lively(base), base, ["short", "a" * 63])
    assert "Prompt 2 of 2 has 64 tokens, but the model's context holds 64" in str(caught.value)
    assert "shorten the prompt to at most 63" in str(caught.value)


def test_a_role_token_ends_a_chat_reply_and_is_not_part_of_it(chat):
    ids = chat.encode("Hi!")
    [reply] = generate_replies(says(chat, [*ids, chat.control["<|user|>"], *ids]), chat, ["Hello"])
    assert (reply.text, reply.finish_reason, reply.stop_id) == ("Hi!", "stop", chat.control["<|user|>"])


# Prompts


def test_a_base_model_continues_the_prompt_as_a_document(base):
    assert prompt_ids(base, "Once") == [base.document_id, *base.encode("Once")]


def test_a_chat_model_reads_a_prompt_in_the_chat_format(chat):
    assert prompt_ids(chat, "Hi") == render([Message("user", "Hi")], chat, add_generation_prompt=True)[0]


def test_the_default_system_message_comes_first_unless_it_is_replaced():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = ChatFormat(default_system="Be kind.")

    def rendered(*messages: Message) -> list[int]:
        return render(messages, tokenizer, add_generation_prompt=True)[0]

    user, own = Message("user", "Hi"), Message("system", "Be brief.")
    assert prompt_ids(tokenizer, "Hi") == rendered(Message("system", "Be kind."), user)
    assert prompt_ids(tokenizer, "Hi", system=None) == rendered(user)
    assert prompt_ids(tokenizer, "Hi", system="Rhyme.") == rendered(Message("system", "Rhyme."), user)
    assert prompt_ids(tokenizer, [own, user]) == rendered(own, user)
    assert prompt_ids(tokenizer, [user]) == rendered(Message("system", "Be kind."), user)


def test_conversations_and_texts_can_share_a_batch(chat):
    model = lively(chat)
    prompts = ["Hi", [Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Once")]]
    together = generate_replies(model, chat, prompts, GREEDY)
    assert together == [generate_replies(model, chat, [prompt], GREEDY)[0] for prompt in prompts]


# Streaming


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.3, "seed": 4}, {"seed": 1, "top_k": 30}])
@pytest.mark.parametrize("prompt", ["Once upon", "Sara had a red ball"])
def test_streamed_pieces_joined_are_what_generate_returns(base, prompt, settings):
    model = lively(base)
    pieces = list(stream(model, base, prompt, max_new_tokens=30, **settings))
    assert "".join(pieces) == generate(model, base, [prompt], max_new_tokens=30, **settings)[0]
    assert all(pieces)


def test_an_emoji_of_several_tokens_is_streamed_in_one_piece(base):
    ids = base.encode("Hi 🦔!")
    assert len(base.encode("🦔")) > 1
    pieces = list(stream(says(base, [*ids, base.end_id]), base, "Once"))
    assert "".join(pieces) == "Hi 🦔!"
    assert any("🦔" in piece for piece in pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_incomplete_character_becomes_the_replacement_character(base):
    ids = base.encode("🦔")[:-1]
    model = says(base, [*ids, base.end_id])
    assert "".join(stream(model, base, "Once")) == generate(model, base, ["Once"])[0] == "\ufffd"


def test_a_stream_returns_the_reply_when_it_is_exhausted(base):
    returned: list[Reply] = []

    def reading():
        returned.append((yield from stream(says(base, [70, 71, base.end_id]), base, "Once")))

    list(reading())
    assert returned == generate_replies(says(base, [70, 71, base.end_id]), base, ["Once"])


def test_stream_raises_for_an_invalid_prompt_when_it_is_called(base):
    with pytest.raises(UserError, match="context holds 64"):
        stream(lively(base), base, "a" * 100)


def test_llama2cs_leading_space_is_kept_in_a_continuation_and_dropped_from_a_reply(real_data):
    tokenizer = ChatTokenizer.from_llama2c(real_data / "stories260K" / "tok512.bin")
    ids = [*tokenizer.encode("there was a cat"), tokenizer.control["</s>"]]
    assert generate(says(tokenizer, ids), tokenizer, ["Once"]) == [" there was a cat"]
    assert generate(says(tokenizer, ids), tokenizer, [""]) == ["there was a cat"]
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat()
    assert generate(says(tokenizer, ids), tokenizer, ["Once"]) == ["there was a cat"]
    assert "".join(stream(says(tokenizer, ids), tokenizer, "Once")) == "there was a cat"


def test_the_published_greedy_sample_of_stories260k_is_reproduced(real_data):
    file = (real_data / "stories260K" / "stories260K.md").read_text(encoding="utf-8")
    sample = file.partition("-t 0.0\n")[2].partition("\n```")[0]
    model, tokenizer = load_checkpoint(real_data / "stories260K" / "stories260K.bin", "cpu")
    assert generate(model, tokenizer, [""], max_new_tokens=256, temperature=0) == [sample]


# Progress and invalid input


def test_progress_is_reported_for_every_reply(base):
    counts: list[int] = []
    generate_replies(lively(base), base, PROMPTS, GREEDY, batch_size=4, progress=counts.append)
    assert counts == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": "Once"}, "put a single text or conversation into a list"),
        ({"prompts": [Message("user", "Hi")]}, "put a single text or conversation into a list"),
        ({"prompts": [[Message("user", "Hi")]]}, "base model without a chat format"),
        ({"system": "Be kind."}, "base model without a chat format"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_invalid_input_is_reported_in_one_sentence(base, arguments, message):
    with pytest.raises(UserError, match=message):
        generate(lively(base), base, **{"prompts": ["Once"]} | arguments)


def test_a_streamed_continuation_keeps_the_leading_space_of_its_first_token(real_data):
    tokenizer = ChatTokenizer.from_llama2c(real_data / "stories260K" / "tok512.bin")
    model = says(tokenizer, [*tokenizer.encode("day"), tokenizer.control["</s>"]])
    assert "".join(stream(model, tokenizer, "One")) == generate(model, tokenizer, ["One"])[0] == " day"
