"""The bodies of requests: what is supported, what is ignored, and what is refused because it would change the meaning of a reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import well_formed
from mini_chat_gpt.generation.settings import MAX_SEED, Sampling
from mini_chat_gpt.serve.errors import APIError
from mini_chat_gpt.serve.reply import Asked

MAX_STOPS, MAX_ALTERNATIVES, MAX_ALTERNATIVES_OF_COMPLETION, MAX_CHOICES = 16, 20, 20, 16
COMPLETION_TOKENS = 16
"""Length of a completion without `max_tokens`, as in OpenAI's API."""

HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "chat_template": (),
    "grammar": ("",),
    "json_schema": (),
    "guided_json": (),
    "guided_regex": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "structured_outputs": (),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""Fields that would change the reply but are not supported, and values with which they change nothing (null is another one)."""


class _Body(BaseModel):
    """Fields that chats and completions have in common. All others are ignored, but for those of `HARMLESS`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk about the tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    @property
    def token_limit(self) -> int | None:
        """The requested length of the reply."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Most likely tokens to report with each token; None for no probabilities."""
        return None

    def refuse_unsupported(self) -> None:
        """Raise APIError for a field of `HARMLESS` with another value."""
        for name, value in (self.model_extra or {}).items():
            if name in HARMLESS and value is not None and value not in HARMLESS[name]:
                raise APIError(
                    400, f"{name} is not supported by this server; leave it out.", param=name, code="unsupported"
                )

    def asked(self, choice: int, room: int, default: Sampling, most: int, seconds: float) -> Asked:
        """The settings of one choice. `room` tokens are free after the prompt; a reply has at most `most`. Raises APIError."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS:
            raise APIError(400, f"stop has {len(stops)} texts; at most {MAX_STOPS} are supported.", param="stop")
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
        # 0 and −1 mean "all" in other servers.
        given["top_k"] = None if self.top_k is None or self.top_k <= 0 else self.top_k
        values = {name: getattr(default, name) if value is None else value for name, value in given.items()}
        n_tokens = min(room, most if self.token_limit is None else self.token_limit)
        seed = None if self.seed is None else self.seed % (MAX_SEED + 1)
        try:
            sampling = Sampling(n_tokens, seed=seed, **values)
        except UserError as error:
            raise APIError(400, str(error), param=str(error).partition(" ")[0]) from None
        return Asked(
            sampling,
            choice,
            tuple(map(well_formed, stops)),
            self.presence_penalty or 0.0,
            self.frequency_penalty or 0.0,
            self.alternatives,
            self.thinking,
            seconds,
        )

    @property
    def thinking(self) -> bool | None:
        """Whether the model thinks before it replies; None for the default of its chat format."""
        return None


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[dict[str, Any]] | None = None

    def message(self, number: int) -> Message:
        """The message as the chat format takes it. Raises APIError for what is not text."""
        where = f"messages.{number}"
        if self.role not in ("system", "developer", "user", "assistant"):
            raise APIError(
                400,
                f"{where} has the role {self.role[:40]!r}; the roles are system, developer, user and assistant.",
                param=where,
            )
        extra = self.model_extra or {}
        if extra.get("tool_calls") or extra.get("function_call"):
            raise APIError(
                400, f"{where} calls a tool; tools are not supported by this server.", param=where, code="unsupported"
            )
        if isinstance(self.content, list):
            content = "\n".join(_text_of_part(part, f"{where}.content.{i}") for i, part in enumerate(self.content))
        else:
            content = self.content or ""
        return Message("system" if self.role == "developer" else self.role, well_formed(content))


def _text_of_part(part: Mapping[str, Any], where: str) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise APIError(
            400,
            f"{where} is of the type {str(kind)[:40]!r}; this server takes text only.",
            param=where,
            code="unsupported",
        )
    if not isinstance(text, str):
        raise APIError(400, f"{where} has no text.", param=where)
    return text


class ChatBody(_Body):
    """POST /v1/chat/completions"""

    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def thinking(self) -> bool | None:
        value = (self.chat_template_kwargs or {}).get("enable_thinking")
        return value if isinstance(value, bool) else None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.top_logprobs and not self.logprobs:
            raise APIError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
        if unknown := set(self.chat_template_kwargs or {}) - {"enable_thinking"}:
            name = f"chat_template_kwargs.{min(unknown)[:40]}"
            raise APIError(
                400, f"{name} is not supported by this server; leave it out.", param=name, code="unsupported"
            )

    def conversation(self) -> list[Message]:
        """The messages. Raises APIError."""
        return [message.message(number) for number, message in enumerate(self.messages)]


class CompletionBody(_Body):
    """POST /v1/completions"""

    prompt: str | list[Any]
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES_OF_COMPLETION)

    @property
    def token_limit(self) -> int | None:
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str]:
        """The texts to continue. Raises APIError."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise APIError(
                400, "prompt must be a text or a list of texts; token ids are not supported.", param="prompt"
            )
        if len(prompts) * (self.n or 1) > MAX_CHOICES:
            raise APIError(
                400, f"prompt and n give {len(prompts) * (self.n or 1)} choices; at most {MAX_CHOICES}.", param="prompt"
            )
        return [well_formed(prompt) for prompt in prompts]


def parse_chat(body: bytes) -> ChatBody:
    """Raises APIError for a body that is not valid, or that requests something unsupported."""
    return _parse(ChatBody, body)


def parse_completion(body: bytes) -> CompletionBody:
    """See `parse_chat`."""
    return _parse(CompletionBody, body)


def _parse(kind: Any, body: bytes) -> Any:
    try:
        parsed = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"]))[:100] or None
        where = "The body" if param is None else param
        raise APIError(400, f"{where} is not valid: {first['msg'][:200]}.", param=param) from None
    except RecursionError:
        raise APIError(400, "The body is nested too deeply.") from None
    parsed.refuse_unsupported()
    return parsed
