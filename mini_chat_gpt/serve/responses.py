"""The bodies of responses: whole replies, chunks of a stream, and the tokens with their probabilities."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_chat_gpt import __version__
from mini_chat_gpt.serve.reply import Piece, Reply, TokenProbs
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment in the stream of events, which clients ignore."""


@dataclass
class Writer:
    """The response to one request, as `kind` "chat" or "completion"."""

    model: str
    tokenizer: ChatTokenizer
    is_chat: bool
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._offsets: dict[int, int] = {}  # of each choice: characters of the tokens that were written

    def head(self, chunk: bool) -> dict[str, Any]:
        """The fields that every response and every chunk begin with."""
        kind = "text_completion" if not self.is_chat else "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"mini-chat-gpt-{__version__}",
        }

    def first_chunk(self, choice: int) -> dict[str, Any] | None:
        """The chunk with the role. Completions have none."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None, None) if self.is_chat else None

    def chunk(self, choice: int, piece: Piece, with_probs: bool) -> dict[str, Any]:
        """The chunk of a piece."""
        probs = self._probs(choice, piece.tokens) if with_probs else None
        if not self.is_chat:
            return self._chunk(choice, piece.text, probs, piece.finish)
        delta = {"content": piece.text} if piece.text else {}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        return self._chunk(choice, delta, probs, piece.finish)

    def _chunk(self, choice: int, delta: dict[str, Any] | str, probs: Any, finish: str | None) -> dict[str, Any]:
        content = {"text": delta} if isinstance(delta, str) else {"delta": delta}
        return self.head(chunk=True) | {
            "choices": [{"index": choice, **content, "logprobs": probs, "finish_reason": finish}]
        }

    def usage_chunk(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The last chunk, if the client wants it."""
        return self.head(chunk=True) | {"choices": [], "usage": usage_of(replies)}

    def whole(self, replies: Sequence[Reply], pieces: Sequence[Sequence[Piece]], with_probs: bool) -> dict[str, Any]:
        """The response that is not streamed; pieces[i] are those of replies[i]."""
        choices = []
        for number, (reply, parts) in enumerate(zip(replies, pieces, strict=True)):
            text, reasoning = "".join(p.text for p in parts), "".join(p.reasoning for p in parts)
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if reasoning:
                message["reasoning_content"] = reasoning
            probs = self._probs(number, [token for p in parts for token in p.tokens]) if with_probs else None
            content = {"message": message} if self.is_chat else {"text": text}
            choices.append({"index": number, **content, "logprobs": probs, "finish_reason": reply.finish})
        return self.head(chunk=False) | {"choices": choices, "usage": usage_of(replies)}

    def _probs(self, choice: int, tokens: Sequence[TokenProbs]) -> dict[str, Any]:
        """The probabilities in OpenAI's form, which differs between chats and completions."""
        if self.is_chat:
            return {
                "content": [
                    self._token(token.token_id, token.log_probability)
                    | {"top_logprobs": [self._token(*other) for other in token.alternatives]}
                    for token in tokens
                ],
                "refusal": None,
            }
        texts = [self._text(token.token_id) for token in tokens]
        start, offsets = self._offsets.get(choice, 0), []
        for text in texts:
            offsets.append(start)
            start += len(text)
        self._offsets[choice] = start
        return {
            "tokens": texts,
            "token_logprobs": [token.log_probability for token in tokens],
            "top_logprobs": [{self._text(i): p for i, p in token.alternatives} for token in tokens],
            "text_offset": offsets,
        }

    def _token(self, token_id: int, log_probability: float) -> dict[str, Any]:
        raw = self._bytes(token_id)
        # JSON has no −∞; OpenAI writes this number for what is practically impossible.
        return {"token": raw.decode("utf-8", "replace"), "logprob": max(log_probability, -9999.0), "bytes": list(raw)}

    def _text(self, token_id: int) -> str:
        return self._bytes(token_id).decode("utf-8", "replace")

    def _bytes(self, token_id: int) -> bytes:
        if token_id >= self.tokenizer.vocab_size:  # a padding row of the model's table
            return b""
        return self.tokenizer.decode_bytes([token_id], control=True, start=False)


def usage_of(replies: Sequence[Reply]) -> dict[str, Any]:
    """The tokens of all choices. The prompt of several choices counts once."""
    prompts = {tuple(reply.prompt): reply.usage for reply in reversed(replies)}
    n_prompt = sum(usage.n_prompt for usage in prompts.values())
    n_new = sum(reply.usage.n_new for reply in replies)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": {"cached_tokens": sum(usage.n_cached for usage in prompts.values())},
    }


def event(value: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + to_json(value) + b"\n\n"


def to_json(value: Any) -> bytes:
    """Compact ASCII: some clients divide the lines of a stream also at U+2028, U+0085 and their like."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
