"""What every request passes before anything else: Host, Origin and key, and the headers of every response.

A web page of another site can make a browser send requests to this machine. It can't change the Host and Origin that the browser
sends, so those show where a request is from ("DNS rebinding" gives such a page's own name to this machine's address).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mini_chat_gpt.serve.errors import AUTHENTICATION, APIError

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
PRIVATE = ("/v1/", "/metrics")
"""Beginnings of the paths that need the key."""
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    hosts     names, in addition to those of this machine, by which it may be called
    origins   web sites whose pages may use it, such as https://example.org
    api_key   what `Authorization: Bearer …` must have; None: no key
    any_ip    whether it may be called by any address, as it listens on all of them
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    api_key: str | None = None
    any_ip: bool = False

    def check(self, path: str, headers: Headers) -> None:
        """Raise APIError for a request that is refused."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or (name := host_name(hosts[0])) is None:
            raise APIError(400, "The request needs one valid Host header.")
        if name not in LOCAL | self.hosts and not (self.any_ip and _is_ip(name)):
            raise APIError(
                403,
                f"This server is not {name[:80]!r}; start it with --allow-host to call it by that name.",
                code="host_not_allowed",
            )
        for origin in headers.getlist("origin"):
            if origin not in self.origins and urlsplit_host(origin) != hosts[0].lower():
                raise APIError(
                    403,
                    f"Pages of {origin[:80]!r} may not use this server; start it with --allow-origin to allow them.",
                    code="origin_not_allowed",
                )
        if self.api_key is not None and path.startswith(PRIVATE):
            self._check_key(headers.getlist("authorization"))

    def _check_key(self, values: Iterable[str]) -> None:
        assert self.api_key is not None
        given = next(iter(values), "")  # bytes as Latin-1 characters
        scheme, _, key = given.partition(" ")
        same = hmac.compare_digest(key.strip().encode("latin-1"), self.api_key.encode())
        if scheme.lower() != "bearer" or not same:
            problem = (
                "The API key is wrong" if given else "The API key is missing; send it as Authorization: Bearer KEY"
            )
            raise APIError(401, f"{problem}.", AUTHENTICATION, code="invalid_api_key")


def host_name(header: str) -> str | None:
    """The name in a Host header, without the port and the brackets of an IPv6 address; None if it is not valid."""
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9a-fA-F:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,255}))(?::[0-9]{1,5})?", header)
    if match is None:
        return None
    return (match["v6"] or match["name"]).lower().rstrip(".")


def urlsplit_host(origin: str) -> str | None:
    """ "http://localhost:8080" -> "localhost:8080"; None for "null" and for what is not the origin of a web page."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    is_origin = parts.scheme in ("http", "https") and f"{parts.scheme}://{parts.netloc}" == origin
    return parts.netloc.lower() if is_origin else None


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Checks each request and adds headers to each response. A path with doubled slashes means the one with single ones."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = re.sub("/{2,}", "/", scope["path"])
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin in self.access.origins else None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = HEADERS | ({"Access-Control-Allow-Origin": allowed, "Vary": "Origin"} if allowed else {})
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode("latin-1")) for name, value in extra.items()),
                ]
            await send(message)

        app: ASGIApp
        try:
            if scope.get("http_version") not in ("1.0", "1.1"):
                raise APIError(505, "This server speaks HTTP/1.1.")
            is_preflight = scope["method"] == "OPTIONS" and allowed is not None
            # A browser sends no key with the question whether it may send one.
            self.access.check("" if is_preflight else path, headers)
            app = _preflight() if is_preflight else self.app
        except APIError as error:
            app = error_response(error)
        await app(dict(scope) | {"path": path, "raw_path": path.encode("utf-8", "replace")}, receive, send_with_headers)


def _preflight() -> Response:
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=headers)


def error_response(error: APIError) -> JSONResponse:
    """The response that reports an error."""
    headers = error.headers | ({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})
    return JSONResponse(error.body(), error.status, headers)
