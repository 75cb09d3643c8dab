"""`mini-chat-gpt serve`: load the models, listen, and stop when a signal comes, after the replies that run."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from typing import TYPE_CHECKING

from mini_chat_gpt.cli_options import Arguments
from mini_chat_gpt.common.errors import UserError

if TYPE_CHECKING:
    from mini_chat_gpt.serve.app import Server

EVERYWHERE = ("0.0.0.0", "::")


def log_line(line: str) -> None:
    """Write a line of the log, if it can be written: a closed pipe must not fail a reply."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def run(arguments: Arguments) -> int:
    """Serve until a signal. Returns the exit code. Raises UserError."""
    _require_extra()
    from mini_chat_gpt.serve.app import Limits, Server
    from mini_chat_gpt.serve.guard import Access
    from mini_chat_gpt.serve.models import Options, find_sources, load_models

    with listen(arguments.host, arguments.port) as listener:  # before the models, which take longer
        sources = find_sources(arguments.checkpoint or [])
        prefix_bytes = None if arguments.prefix_cache is None else arguments.prefix_cache * 2**20
        options = Options(
            arguments.device, arguments.weights, arguments.max_rows, arguments.max_queue, prefix_bytes, log_line
        )
        models = load_models(sources, options)
        access = Access(
            frozenset(name.lower() for name in [*arguments.allow_host, arguments.host]),
            frozenset(arguments.allow_origin),
            arguments.api_key,
            arguments.host in EVERYWHERE,
        )
        limits = Limits(arguments.max_body * 2**20, arguments.max_tokens, arguments.timeout)
        server = Server(models, access, limits, log=log_line, log_text=arguments.log_text)
        if not _is_local(arguments.host) and arguments.api_key is None:
            log_line("warning: other machines can use this server without a key; set one with --api-key.")
        for engine in server.engines:
            engine.start()
        try:
            serve(server, listener, arguments.open)
        finally:
            for engine in server.engines:
                engine.close()
    return 0


def _require_extra() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'The server needs the library {error.name}; install it: pip install "mini-chat-gpt[serve]".'
        ) from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError if the port is taken or the address isn't this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        if isinstance(error, socket.gaierror):
            raise UserError(f"--host {host} is not an address of this machine; use 127.0.0.1 or 0.0.0.0.") from None
        # `create_server` adds the address to the text of the system.
        reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
        raise UserError(
            f"Port {port} of {host} can't be used ({reason}); choose another one: --port {port + 1 if port < 65535 else 8080}."
        ) from None


def address_of(listener: socket.socket) -> str:
    """The web address of a listening socket, as this machine sees it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(server: Server, listener: socket.socket, open_browser: bool = False) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. The first one lets running replies finish, a second one ends them."""
    from mini_chat_gpt.serve.http_server import HTTPServer

    address = address_of(listener)

    def started() -> None:
        server.log(f"Open {address} in a browser. The API is at {address}/v1. Ctrl-C stops the server.")
        if open_browser:
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()

    def stopping() -> None:
        n = sum(row.reply.finish is None for engine in server.engines for row in list(engine.rows))
        server.log(f"Stopping{f' after {n} running ' + ('reply' if n == 1 else 'replies') if n else ''}.")
        server.shut_down()

    HTTPServer(server.app, started, stopping, server.cancel_all).run(sockets=[listener])
