"""The options of `mini-chat-gpt serve`. This module imports no tensor library, so that mistakes are reported at once."""

from __future__ import annotations

from mini_chat_gpt.cli_options import (
    MAX_NUMBER,
    Arguments,
    Parser,
    add_device_option,
    add_weights_option,
    check_range,
    number,
    whole,
)
from mini_chat_gpt.common.errors import UserError

SERVE_HELP = """\
The API is that of OpenAI: POST /v1/chat/completions and /v1/completions, GET /v1/models, /health and /metrics. The web page is at /.
SIGTERM and Ctrl-C stop the server after the replies that run; a second one ends them.
"""


def serve_options(parser: Parser) -> None:
    parser.add_argument(
        "--checkpoint",
        action="append",
        metavar="[NAME=]PATH",
        help="a model, and the name under which clients find it; repeat it for several (default: newest chat model under runs/)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=whole, default=8080, metavar="N", help="port (default: 8080; 0: a free one)")
    parser.add_argument("--open", action="store_true", help="open the web page in the browser")
    add_device_option(parser)
    add_weights_option(parser)
    access = parser.add_argument_group("access")
    access.add_argument("--api-key", metavar="KEY", help="clients must send this key (default: no key)")
    access.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="another name by which clients call this machine",
    )
    access.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="a web site whose pages may use the server"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-rows", type=whole, default=16, metavar="N", help="replies computed at once (default: 16)"
    )
    limits.add_argument("--max-queue", type=whole, default=64, metavar="N", help="replies that wait (default: 64)")
    limits.add_argument(
        "--max-tokens",
        type=whole,
        default=4096,
        metavar="N",
        help="maximum length of a reply in tokens (default: 4096)",
    )
    limits.add_argument("--max-body", type=whole, default=4, metavar="MB", help="size of a request (default: 4)")
    limits.add_argument("--timeout", type=number, default=600.0, metavar="S", help="seconds for a reply (default: 600)")
    limits.add_argument(
        "--prefix-cache",
        type=whole,
        metavar="MB",
        help="memory for beginnings of conversations that are kept (default: an eighth of the free memory, at most 2048)",
    )
    parser.add_argument(
        "--log-text", action="store_true", help="also log prompts and replies (default: lengths and times only)"
    )


def check_serve(arguments: Arguments) -> None:
    check_range(
        arguments,
        port=(0, 65535),
        max_rows=(1, 32),
        max_queue=(0, 10_000),
        max_tokens=(1, MAX_NUMBER),
        max_body=(1, 1024),
        prefix_cache=(0, 2**20),
    )
    if not 0 < arguments.timeout < float("inf"):
        raise UserError(f"--timeout is {arguments.timeout:g}; it must be a number of seconds above 0.")
    if arguments.api_key is not None and not arguments.api_key.strip():
        raise UserError("--api-key is empty; give a key, or omit the option.")
    for origin in arguments.allow_origin:
        scheme, _, host = origin.partition("://")
        if scheme not in ("http", "https") or not host or "/" in host:
            raise UserError(f"--allow-origin is {origin!r}; it must be like https://example.org, without a path.")
