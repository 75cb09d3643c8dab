"""Text generation: text in, text out. `generate` replies to many prompts in batches, `stream` to one prompt as it is read.

Both encode the prompt, run the decoding loop (`decode`) and turn the ids back into text. Guarantees:

- A reply depends on its prompt, the settings and the seed, not on the rest of the batch.
- A chat model reads its prompt in its chat format, with the system message that it was trained with. A base model continues
  the prompt as the beginning of a document.
- The stop token that ends a reply is not part of its text. Neither is the reasoning of a model that thinks before it replies.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from mini_chat_gpt.chat_format import Message, render_spans
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.decode import (
    FinishReason,
    Model,
    Step,
    concrete_seed,
    decode,
    for_inference,
    random_streams,
)
from mini_chat_gpt.generation.reasoning import ReplyDecoder, decode_reply, joined, reasoning_marks
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

Prompt = str | Sequence[Message]


class _System(Enum):
    FORMAT_DEFAULT = "the system message of the model's chat format, if it has one"


# A value of its own, because None means "no system message".
USE_FORMAT_DEFAULT = _System.FORMAT_DEFAULT
System = str | _System | None


@dataclass(frozen=True)
class Reply:
    """A generated reply, and why it ended."""

    text: str
    ids: tuple[int, ...]  # without the stop token
    finish_reason: FinishReason  # "stop": a stop token; "length": max_new_tokens; "context": the context is full
    n_prompt: int  # tokens of the prompt, including control tokens
    stop_id: int | None = None  # the stop token that ended it; None if it was cut off
    reasoning: str | None = None  # what the model wrote before the reply, if its chat format has reasoning


def generate(
    model: Model,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    system: System = USE_FORMAT_DEFAULT,
    batch_size: int = 32,
    thinking: bool | None = None,
) -> list[str]:
    """Return the reply to each prompt, in order. See `Sampling` for the settings and `generate_replies` for the rest."""
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    replies = generate_replies(model, tokenizer, prompts, sampling, system, batch_size, thinking=thinking)
    return [reply.text for reply in replies]


def generate_replies(
    model: Model,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    system: System = USE_FORMAT_DEFAULT,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    thinking: bool | None = None,
) -> list[Reply]:
    """Reply to every prompt, `batch_size` at a time, and report how each reply ended.

    A prompt is a text, or a conversation that ends with a user message (chat models only). `system` is prepended to
    conversations without a system message: the chat format's default, a text, or None for no system message. `progress` is
    called with the number of finished replies after each reply. `thinking` says whether the model thinks before it replies;
    None is the default of its chat format.

    Raises UserError for an empty list, for a prompt that leaves no room for a reply in the context, for a conversation
    or system message given to a base model, and for `thinking` with a model that has no such switch.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    encoded, marks = _encode_prompts(model, tokenizer, prompts, system, thinking), reasoning_marks(tokenizer, thinking)
    model = for_inference(model, min(batch_size, len(prompts)), sampling.max_new_tokens)
    seed = concrete_seed(sampling.seed)
    replies: dict[int, Reply] = {}
    # Batch prompts of similar length to save padding, and start with the longest: memory runs out at once or never.
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = [encoded[number] for number in numbers]
        ids: list[list[int]] = [[] for _ in numbers]
        # The streams follow the prompts' original numbers, so neither the order nor the batch size changes a reply.
        for row, token_id, finish in decode(model, tokenizer, batch, sampling, random_streams(seed, numbers)):
            if finish != "stop":
                ids[row].append(token_id)
            if finish is not None:
                text, reasoning = decode_reply(tokenizer, ids[row], marks, begins_text(tokenizer, batch[row]))
                stop_id = token_id if finish == "stop" else None
                replies[numbers[row]] = Reply(text, tuple(ids[row]), finish, len(batch[row]), stop_id, reasoning)
                if progress is not None:
                    progress(len(replies))
    return [replies[number] for number in range(len(encoded))]


def stream(
    model: Model,
    tokenizer: ChatTokenizer,
    prompt: Prompt,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    system: System = USE_FORMAT_DEFAULT,
    thinking: bool | None = None,
) -> Generator[str, None, Reply]:
    """Yield the reply to one prompt in pieces of whole characters. Joined, they equal what `generate` returns.

    If the model thinks before it replies, pieces of the class `Thought` come first, which are not part of the reply.
    The generator's return value is the `Reply` (`reply = yield from stream(...)`). See `Sampling` for the settings.
    Raises the errors of `generate_replies`.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    [ids] = _encode_prompts(model, tokenizer, [prompt], system, thinking)
    decoder = ReplyDecoder(tokenizer, reasoning_marks(tokenizer, thinking), begins_text(tokenizer, ids))
    model = for_inference(model, 1, max_new_tokens)
    # The same stream number as the first prompt of a batch, so that `stream` and `generate` agree.
    steps = decode(model, tokenizer, [ids], sampling, random_streams(concrete_seed(sampling.seed), [0]))
    # A generator function of its own: `stream` itself must raise its errors when it is called, not at the first piece.
    return _pieces(decoder, len(ids), steps)


def _pieces(decoder: ReplyDecoder, n_prompt: int, steps: Iterator[Step]) -> Generator[str, None, Reply]:
    ids: list[int] = []
    pieces: list[str] = []
    finish: FinishReason | None = None
    token_id = -1
    for _, token_id, finish in steps:
        if finish != "stop":
            ids.append(token_id)
            # A token may hold only a part of a character. The decoder returns nothing until the character is complete.
            for piece in decoder.push(token_id):
                pieces.append(piece)
                yield piece
    for piece in decoder.finish():
        pieces.append(piece)
        yield piece
    assert finish is not None  # decode ends every row
    text, reasoning = joined(pieces)
    return Reply(text, tuple(ids), finish, n_prompt, token_id if finish == "stop" else None, reasoning)


def prompt_ids(
    tokenizer: ChatTokenizer, prompt: Prompt, system: System = USE_FORMAT_DEFAULT, thinking: bool | None = None
) -> list[int]:
    """Return the ids that the model reads for a prompt; see `generate_replies`."""
    reasoning_marks(tokenizer, thinking)  # raises UserError
    chat_format = tokenizer.chat_format
    if chat_format is None:
        if not isinstance(prompt, str):
            raise UserError("This is a base model without a chat format; give it a text to continue, not messages.")
        if isinstance(system, str):
            raise UserError("This is a base model without a chat format; it takes no system message.")
        # Documents begin with this token in pretraining, too.
        return [tokenizer.document_id, *tokenizer.encode(prompt)]
    messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if system is USE_FORMAT_DEFAULT:
        system = chat_format.default_system
    if system is not None and not (messages and messages[0].role == "system"):
        messages.insert(0, Message("system", str(system)))
    # The default is among the messages now, or the caller wants none: the format must not insert one.
    return render_spans(messages, tokenizer, add_generation_prompt=True, system_default=False, thinking=thinking).ids


def _encode_prompts(
    model: Model, tokenizer: ChatTokenizer, prompts: Sequence[Prompt], system: System, thinking: bool | None
) -> list[list[int]]:
    # Strings and conversations are sequences themselves. Without this check each character would be taken for a prompt.
    if isinstance(prompts, str) or any(isinstance(prompt, Message) for prompt in prompts):
        raise UserError("prompts must be a list of prompts; put a single text or conversation into a list: [prompt].")
    if not prompts:
        raise UserError("There are no prompts; give at least one.")
    context = model.config.context_length
    encoded = [prompt_ids(tokenizer, prompt, system, thinking) for prompt in prompts]
    for number, ids in enumerate(encoded, start=1):
        if len(ids) >= context:
            which = f"Prompt {number} of {len(encoded)}" if len(encoded) > 1 else "The prompt"
            raise UserError(
                f"{which} has {len(ids)} tokens, but the model's context holds {context}, prompt and reply together; "
                f"shorten the prompt to at most {context - 1}, or use a model with a longer context."
            )
    return encoded


def begins_text(tokenizer: ChatTokenizer, prompt: Sequence[int]) -> bool:
    """Whether a reply begins a new text, as it does after a control token, or continues the text of the prompt.

    SentencePiece tokenizers drop the leading space of a new text.
    """
    return prompt[-1] in tokenizer.control.values() and tokenizer.space_after(prompt[-1])
