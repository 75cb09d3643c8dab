"""Mutants of the bodies of requests to the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fuzz.oracle import Target

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.serve.bodies import HARMLESS, ChatBody, CompletionBody, parse_chat, parse_completion
from mini_chat_gpt.serve.errors import APIError

CHAT = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Once"}, {"type": "text", "text": "upon"}]},
    ],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "seed": 7,
    "max_tokens": 5,
    "stop": ["x", "yz"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 2,
    "presence_penalty": 0.5,
    "tools": [],
    "user": "me",
}
COMPLETION = {"model": "base", "prompt": ["Once", "Sara"], "n": 2, "min_p": 0.1, "frequency_penalty": -1, "logprobs": 3}
SETTINGS = ("temperature", "top_p", "min_p", "repetition_penalty")
ROOM = 100


def targets(folder: Path) -> list[Target]:
    """The two kinds of bodies."""
    made = []
    for name, body, act in (("chat", CHAT, read_chat), ("completion", COMPLETION, read_completion)):
        fixture = folder / name
        fixture.mkdir()
        (fixture / "body.json").write_text(json.dumps(body, indent=1))
        made.append(Target(f"serve {name}", fixture, ["body.json"], act, naive=naive))
    return made


def read_chat() -> Any:
    """What the server takes from a chat."""
    body = _read(parse_chat)
    return _value(body, [[message.role, message.content] for message in _refused(body.conversation)])


def read_completion() -> Any:
    """What the server takes from a completion."""
    body = _read(parse_completion)
    return _value(body, _refused(body.prompts))


def _read(parse: Any) -> Any:
    try:
        data = Path("body.json").read_bytes()
    except OSError:  # a file that is missing is not a body
        raise UserError("There is no body.") from None
    return _refused(lambda: parse(data))


def _refused(act: Any) -> Any:
    """A refusal of the server is a user's mistake, if its status says so."""
    try:
        return act()
    except APIError as error:
        if not 400 <= error.status < 500:
            raise
        raise UserError(error.message) from None


def _value(body: ChatBody | CompletionBody, texts: list[Any]) -> dict[str, Any]:
    asked = _refused(lambda: body.asked(0, ROOM, Sampling(), ROOM, 1.0))
    sampling = asked.sampling
    return {
        "model": body.model,
        "texts": texts,
        "stream": bool(body.stream),
        "usage": body.wants_usage,
        "tokens": sampling.max_new_tokens,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "stop": list(asked.stop),
        "penalties": [asked.presence_penalty, asked.frequency_penalty],
        "alternatives": asked.n_alternatives,
        "n": body.n or 1,
        **{name: getattr(sampling, name) for name in SETTINGS},
    }


def naive() -> dict[str, Any]:
    """The same by another reader, which raises any error for what is not valid."""
    body = json.loads(Path("body.json").read_bytes().decode())
    assert all(body.get(name) in (None, *values) for name, values in HARMLESS.items())
    default, chat = Sampling(), "messages" in body
    texts = [_naive_message(message) for message in body["messages"]] if chat else body["prompt"]
    limit = body.get("max_completion_tokens") if chat and body.get("max_completion_tokens") else body.get("max_tokens")
    stop, top_k, seed = body.get("stop"), body.get("top_k"), body.get("seed")
    return {
        "model": body.get("model"),
        "texts": [texts] if isinstance(texts, str) else texts,
        "stream": bool(body.get("stream")),
        "usage": bool((body.get("stream_options") or {}).get("include_usage")),
        "tokens": min(ROOM, limit or (ROOM if chat else 16)),
        "top_k": top_k if top_k and top_k > 0 else None,
        "seed": None if seed is None else seed % 2**63,
        "stop": [stop] if isinstance(stop, str) else stop or [],
        "penalties": [body.get("presence_penalty") or 0.0, body.get("frequency_penalty") or 0.0],
        "alternatives": (body.get("top_logprobs") or 0 if body.get("logprobs") else None)
        if chat
        else body.get("logprobs"),
        "n": body.get("n") or 1,
        **{name: getattr(default, name) if body.get(name) is None else body[name] for name in SETTINGS},
    }


def _naive_message(message: dict[str, Any]) -> list[str]:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    return ["system" if message["role"] == "developer" else message["role"], content]
