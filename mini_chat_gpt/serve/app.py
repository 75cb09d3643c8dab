"""The routes of the server: OpenAI's API for chats and completions, models, health, metrics, and the web page."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mini_chat_gpt import assets
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.text import clean
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.generation.text import prompt_ids
from mini_chat_gpt.serve.bodies import ChatBody, CompletionBody, parse_chat, parse_completion
from mini_chat_gpt.serve.engine import QueueFull, ReplyEngine, ShuttingDown, Variant
from mini_chat_gpt.serve.errors import INVALID, RATE, SERVER, APIError
from mini_chat_gpt.serve.guard import Access, Guard, error_response
from mini_chat_gpt.serve.mailbox import Mailbox, watch
from mini_chat_gpt.serve.metrics import Metrics
from mini_chat_gpt.serve.reply import Piece, Reply
from mini_chat_gpt.serve.responses import DONE, KEEP_ALIVE, Writer, event, to_json

KEEP_ALIVE_SECONDS, BODY_SECONDS = 5.0, 30.0
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
SCRIPTS = ("api", "composer", "markdown", "messages", "settings", "sidebar", "start", "store", "why")
PAGE = {
    name: f"{MEDIA_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    for name in ("serve.html", "page.css", "serve.css", "serve.js", *(f"serve_{script}.js" for script in SCRIPTS))
}
"""Files of the web page, in `assets/`, and their types."""


@dataclass(frozen=True)
class ServedModel:
    """A model under its name."""

    name: str
    engine: ReplyEngine
    variant: Variant
    description: str = ""
    examples: Sequence[str] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def context(self) -> int:
        return self.variant.model.config.context_length

    def entry(self) -> dict[str, Any]:
        """The model in GET /v1/models."""
        chat_format = self.variant.tokenizer.chat_format
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "mini-chat-gpt",
            "context_length": self.context,
            "description": self.description,
            "examples": list(self.examples),
            "system_message": None if chat_format is None else chat_format.default_system,
        }


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    body_bytes: int = 4 * 2**20
    tokens: int = 4096  # of a reply; a chat without max_tokens gets as many as fit
    seconds: float = 600.0  # from the request to the end of the reply


class Server:
    """The application. `models[0]` replies to requests that name none."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        access: Access = Access(),  # noqa: B008 (frozen)
        limits: Limits = Limits(),
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        log: Callable[[str], object] = partial(print, file=sys.stderr, flush=True),  # noqa: B008
        log_text: bool = False,
    ) -> None:
        self.models: Mapping[str, ServedModel] = {model.name: model for model in models}
        self.engines = list(dict.fromkeys(model.engine for model in models))
        self.limits, self.sampling, self.log, self.log_text = limits, sampling, log, log_text
        self.metrics = Metrics(self.engines)
        routes = [
            Route("/v1/chat/completions", partial(self._complete, parse_chat), methods=["POST"]),
            Route("/v1/completions", partial(self._complete, parse_completion), methods=["POST"]),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{name:path}", self._show_model),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/", self._asset),
            Route("/assets/{name}", self._asset),
        ]
        handlers: Any = {HTTPException: _no_route, APIError: _api_error, Exception: self._failure}
        self.app = Guard(Starlette(routes=routes, exception_handlers=handlers), access)

    def shut_down(self) -> None:
        """Accept no more replies; those that run are finished."""
        for engine in self.engines:
            engine.shut_down()

    def cancel_all(self) -> None:
        """End the running replies."""
        for engine in self.engines:
            engine.cancel_all()

    # Replies

    async def _complete(self, parse: Callable[[bytes], ChatBody | CompletionBody], request: Request) -> Response:
        body = parse(await read_body(request, self.limits.body_bytes))
        model = self._model(body.model)
        prompts = await asyncio.to_thread(_prompts, model, body)  # a body of megabytes takes seconds
        mailbox = Mailbox()
        replies = [
            self._reply(model, body, ids, number, mailbox)
            for number, ids in enumerate(ids for ids in prompts for _ in range(body.n or 1))
        ]
        engine = model.engine
        if len(replies) > engine.max_rows + engine.max_queue:
            raise APIError(
                400, f"This server computes at most {engine.max_rows + engine.max_queue} choices.", param="n"
            )
        try:
            engine.submit(model.variant, replies)
        except QueueFull:
            raise APIError(
                429, "Too many requests are waiting; try again later.", RATE, code="queue_full", retry=True
            ) from None
        except ShuttingDown:
            raise _shutting_down() from None
        exchange = Exchange(self, model, replies, mailbox, body)
        return EventStream(exchange) if body.stream else await exchange.whole(request)

    def _model(self, name: str | None) -> ServedModel:
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise APIError(
                404,
                f"There is no model {clean(name)[:80]!r}; the models are {known}.",
                INVALID,
                "model",
                "model_not_found",
            )
        return self.models[name]

    def _reply(
        self, model: ServedModel, body: ChatBody | CompletionBody, ids: list[int], number: int, mailbox: Mailbox
    ) -> Reply:
        room = model.context - len(ids)
        if room < 1:
            where = "messages" if isinstance(body, ChatBody) else "prompt"
            raise APIError(
                400,
                f"This model's context holds {model.context} tokens, and the prompt has {len(ids)}; shorten it.",
                param=where,
                code="context_length_exceeded",
            )
        if (body.token_limit or 0) > self.limits.tokens:
            raise APIError(400, f"A reply of this server has at most {self.limits.tokens} tokens.", param="max_tokens")
        asked = body.asked(number, room, self.sampling, self.limits.tokens, self.limits.seconds)
        try:
            return Reply(ids, asked, model.variant.tokenizer, partial(mailbox.put, number))
        except UserError as error:
            raise APIError(400, str(error)) from None

    # Everything else

    async def _list_models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model.entry() for model in self.models.values()]})

    async def _show_model(self, request: Request) -> Response:
        return JSONResponse(self._model(request.path_params["name"]).entry())

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, _request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _asset(self, request: Request) -> Response:
        name = request.path_params.get("name", "serve.html")
        if name not in PAGE:
            raise HTTPException(404)
        try:
            content = assets.text(name)
        except OSError:
            raise HTTPException(404) from None
        return Response(content, headers={"Content-Type": PAGE[name], "Cache-Control": "no-cache"})

    async def _failure(self, _request: Request, error: Exception) -> Response:
        """A defect of the server. The client learns nothing about its inside."""
        self.log(f"error: {type(error).__name__}: {error}")
        return error_response(APIError(500, "The server has failed.", SERVER, code="internal_error"))


async def _api_error(_request: Request, error: APIError) -> Response:
    return error_response(error)


async def _no_route(request: Request, error: HTTPException) -> Response:
    path = clean(request.url.path)[:80]
    message = (
        f"{request.method[:20]} is not possible for {path}." if error.status_code == 405 else f"There is no {path}."
    )
    response = error_response(
        APIError(error.status_code, message, code="not_found" if error.status_code == 404 else None)
    )
    response.headers.update(error.headers or {})
    return response


def _shutting_down() -> APIError:
    return APIError(503, "The server is shutting down.", SERVER, code="shutting_down", retry=True)


def _prompts(model: ServedModel, body: ChatBody | CompletionBody) -> list[list[int]]:
    """The ids that the model reads, for each prompt. Raises APIError."""
    tokenizer = model.variant.tokenizer
    if isinstance(body, CompletionBody):
        try:
            return [[tokenizer.document_id, *tokenizer.encode(text)] for text in body.prompts()]
        except UserError as error:
            raise APIError(400, str(error), param="prompt") from None
    conversation = body.conversation()
    if tokenizer.chat_format is None:
        raise APIError(
            400,
            f"{model.name} is a base model without a chat format; use /v1/completions.",
            param="model",
            code="no_chat_format",
        )
    try:
        return [prompt_ids(tokenizer, conversation, thinking=body.thinking)]
    except UserError as error:
        raise APIError(400, str(error), param="messages") from None


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request. Raises APIError if it is too large, too slow or compressed."""
    too_large = APIError(413, f"The body is larger than {limit:,} bytes.", code="body_too_large")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise APIError(415, "The body must not be compressed.")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 15 or int(length) > limit):
        raise too_large
    body = bytearray()

    async def receive() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > limit:
                raise too_large

    try:
        await asyncio.wait_for(receive(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise APIError(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.") from None
    except ClientDisconnect:
        raise APIError(400, "The body is incomplete.") from None
    return bytes(body)


class Exchange:
    """A request whose replies are being made."""

    def __init__(
        self,
        server: Server,
        model: ServedModel,
        replies: list[Reply],
        mailbox: Mailbox,
        body: ChatBody | CompletionBody,
    ) -> None:
        self.server, self.model, self.replies, self.mailbox, self.body = server, model, replies, mailbox, body
        self.writer = Writer(model.name, model.variant.tokenizer, isinstance(body, ChatBody))
        self.with_probs = body.alternatives is not None
        self.pieces: list[list[Piece]] = [[] for _ in replies]

    @property
    def is_done(self) -> bool:
        """Whether the last piece of every choice has been taken, or one of them failed."""
        ends = [pieces[-1].finish if pieces else None for pieces in self.pieces]
        return None not in ends or self.error() is not None

    async def take(self) -> list[tuple[int, Piece]]:
        """The next pieces; [] if there are none for a while."""
        items = await self.mailbox.take(KEEP_ALIVE_SECONDS)
        for choice, piece in items:
            self.pieces[choice].append(piece)
        return items

    def error(self) -> APIError | None:
        """Why a choice ended without a reply."""
        finishes = {pieces[-1].finish for pieces in self.pieces if pieces}
        if "error" in finishes:
            return APIError(500, "The reply could not be computed.", SERVER, code="internal_error")
        if finishes & {"shutdown", "canceled"}:  # a client that has gone does not learn how its reply ended
            return _shutting_down()
        if "timeout" in finishes:
            return APIError(503, "The reply took too long.", SERVER, code="timeout", retry=True)
        return None

    def close(self) -> None:
        """Free the rows of what has not ended, and note the request."""
        for reply in self.replies:
            if reply.finish is None:
                reply.cancel()
        self.model.engine.wake()
        self.server.metrics.note(self.model.name, self.replies)
        usage, finish = self.replies[0].usage, self.replies[0].finish or "canceled"
        n_new, seconds = sum(reply.usage.n_new for reply in self.replies), time.monotonic() - usage.asked
        self.server.log(f"{self.model.name}: {usage.n_prompt} + {n_new} tokens in {seconds:.2f} s, {finish}")
        if self.server.log_text:
            for reply, pieces in zip(self.replies, self.pieces, strict=True):
                prompt = self.model.variant.tokenizer.decode(reply.prompt, control=True)
                self.server.log(f"  {prompt!r} -> {''.join(piece.text for piece in pieces)!r}")

    async def whole(self, request: Request) -> Response:
        """The response that is not streamed."""
        watcher = asyncio.create_task(watch(request.receive, self.mailbox))
        try:
            while not self.is_done and not self.mailbox.is_closed:
                await self.take()
        finally:
            watcher.cancel()
            self.close()
        if not self.is_done:
            return Response(status_code=499)  # no one receives it
        if (error := self.error()) is not None:
            raise error
        content = self.writer.whole(self.replies, self.pieces, self.with_probs)
        return Response(to_json(content), media_type="application/json")


class EventStream(Response):
    """A reply in server-sent events. The client's end of the connection is watched, also while nothing is sent."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.background = None
        self.status_code = 200
        self.init_headers({"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self.exchange
        watcher = asyncio.create_task(watch(receive, exchange.mailbox))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            first = [exchange.writer.first_chunk(choice) for choice in range(len(exchange.replies))]
            content = b"".join(event(chunk) for chunk in first if chunk is not None)
            while not exchange.mailbox.is_closed:
                with suppress(OSError):
                    await send({"type": "http.response.body", "body": content, "more_body": True})
                if exchange.is_done:
                    break
                items = await exchange.take()
                content = b"".join(self._events(items)) or KEEP_ALIVE
            if not exchange.mailbox.is_closed:
                await send({"type": "http.response.body", "body": self._end(), "more_body": False})
        finally:
            watcher.cancel()
            exchange.close()

    def _events(self, items: Sequence[tuple[int, Piece]]) -> list[bytes]:
        ends = ("stop", "length", None)
        writer = self.exchange.writer
        return [
            event(writer.chunk(choice, piece, self.exchange.with_probs))
            for choice, piece in items
            if piece.finish in ends
        ]

    def _end(self) -> bytes:
        exchange = self.exchange
        if (error := exchange.error()) is not None:
            return event(error.body()) + DONE
        return (event(exchange.writer.usage_chunk(exchange.replies)) if exchange.body.wants_usage else b"") + DONE
