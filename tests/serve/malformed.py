"""Requests that are wrong in one way or several, with the statuses that are right for each, as bytes for a socket."""

import json
from dataclasses import dataclass
from random import Random

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1//chat/completions")
CLOSED = 0
"""The connection is closed without a response."""


@dataclass(frozen=True)
class Sent:
    """What is sent, in parts, and which statuses are right."""

    parts: list[bytes]
    right: set[int]
    half_close: bool = False  # stop sending after the parts
    leave: bool = False  # close without reading the response


def request(body=b"", method="POST", path=PATHS[0], host="localhost", **headers):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    if "content_length" not in headers and "transfer_encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body


def bad_json(rng):
    good = json.dumps(GOOD).encode()
    choices = [
        good[: rng.randrange(len(good))], good + b"}", b"", b"null", b"[]", b"1", b'"x"', b"[" * 50_000, b'{"a":' * 20_000,
        b"\xff\xfe" + good, good.decode().encode("utf-16"), b"\x00" * 100, b"{'model': 'tiny'}", rng.randbytes(200),
        good.replace(b"Hi", b"\xf0\x28\x8c\x28"), good.replace(b'"Hi"', b'"\\ud800"'), good.replace(b": 2", b": " + b"9" * 5000),
        good.replace(b": 2", b": NaN"), good.replace(b": 2", b": 1e999"), b"grant_type=x&y=z",
    ]  # fmt: skip
    return Sent([request(rng.choice(choices))], {400, 413})


def bad_field(rng):
    name, value = rng.choice(
        [
            ("messages", None), ("messages", {}), ("messages", "Hi"), ("messages", [1]), ("messages", [{}]), ("messages", []),
            ("messages", [{"role": "user"}]), ("messages", [{"role": "user", "content": 5}]),
            ("messages", [{"role": "wizard", "content": "x"}]), ("messages", [{"role": "assistant", "content": "x"}]),
            ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            ("messages", [{"role": "user", "content": "x " * 5000}]), ("model", 5), ("model", []), ("max_tokens", -1),
            ("max_tokens", "2"), ("max_tokens", 2.5), ("max_tokens", True), ("temperature", -1), ("temperature", "warm"),
            ("temperature", []), ("top_p", 2), ("top_p", -0.1), ("n", 0), ("n", 10**9), ("seed", "x"), ("seed", 1.5),
            ("stop", 5), ("stop", [5]), ("stop", ["x"] * 1000), ("stream", "yes"), ("stream_options", 5), ("logprobs", "x"),
            ("top_logprobs", 99), ("presence_penalty", 9), ("frequency_penalty", "x"), ("tools", [{}]), ("functions", [{}]),
            ("response_format", {"type": "json_schema"}), ("logit_bias", {"1": 2}), ("min_p", 7), ("repetition_penalty", 0),
        ]
    )  # fmt: skip
    return Sent([request(json.dumps(GOOD | {name: value}).encode())], {400})


def unknown_model(rng):
    return Sent([request(json.dumps(GOOD | {"model": "x" * rng.randrange(1, 5000) + "\n"}).encode())], {404})


def bad_host(rng):
    host = rng.choice(["evil.example", "localhost.evil.example", "10.0.0.1", "evil.example:8080", "127.0.0.1.nip.io"])
    return Sent([request(json.dumps(GOOD).encode(), host=host)], {403})


def broken_host(rng):
    host = rng.choice(["", "a b", "localhost:abc", "[::1", "local\thost", "localhost/x", "localhost,evil", "ä"])
    return Sent([request(json.dumps(GOOD).encode(), host=host)], {400})


def bad_origin(rng):
    origin = rng.choice(
        ["http://evil.example", "null", "http://localhost:1", "file://", "http://localhost@evil", "http://["]
    )
    return Sent([request(json.dumps(GOOD).encode(), origin=origin)], {403})


def bad_headers(rng):
    choices = [
        (request(b"{}", content_length="-1"), {400}), (request(b"{}", content_length="x"), {400}),
        (request(b"{}", content_length="9" * 400), {400, 413}), (request(b"{}", content_encoding="gzip"), {415}),
        (request(b"{}", transfer_encoding="gzip"), {400, 501}), (request(b"zz\r\nxx", transfer_encoding="chunked"), {400, CLOSED}),
        (b"GET / HTTP/1.1\r\n\r\n", {400}), (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", {400, 505}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400, CLOSED}), (b"GET /health\r\n\r\n", {400, CLOSED}),
        (rng.randbytes(300) + b"\r\n\r\n", {400, CLOSED}), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 405, 505, CLOSED}),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404, 414, 431, CLOSED}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", {200, 400, 431, CLOSED}),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", {400}),
        (b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n", {400}), (b"GET /health HTTP/1.1\r\nHo st: localhost\r\n\r\n", {400}),
    ]  # fmt: skip
    data, right = rng.choice(choices)
    return Sent([data], right, half_close=True)


def bad_route(rng):
    method, path, right = rng.choice(
        [
            ("GET", PATHS[0], {405}), ("DELETE", PATHS[1], {405}), ("PUT", "/v1/models", {405}), ("POST", "/health", {405}),
            ("GET", "/v1/engines", {404}), ("GET", "/assets/../../etc/passwd", {404}), ("GET", "/assets/%2e%2e/cli.py", {404}),
            ("GET", "/%00", {404}), ("GET", "/assets/" + "x" * 3000, {404}), ("BREW", "/", {405}), ("GET", "/v1/models/%FF", {404}),
            ("OPTIONS", PATHS[0], {405}), ("TRACE", "/", {405}),
        ]
    )  # fmt: skip
    return Sent([request(b"", method, path)], right)


def large_body(rng):
    size = rng.choice([70_000, 200_000])
    body = json.dumps(GOOD | {"x": "y" * size}).encode()
    if rng.random() < 0.5:
        return Sent([request(body)], {413, CLOSED})
    chunked = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[i : i + 9999] for i in range(0, size, 9999))
    )
    return Sent([request(transfer_encoding="chunked"), chunked, b"0\r\n\r\n"], {413, CLOSED})


def incomplete(rng):
    """A body that never becomes complete: slow, half-closed, or left."""
    whole = request(json.dumps(GOOD).encode())
    cut = whole[: rng.randrange(1, len(whole))]
    way = rng.choice(["slow", "half", "leave"])
    return Sent([cut], {400, 408, CLOSED}, half_close=way == "half", leave=way == "leave")


def leaves(rng):
    """A valid request whose client does not wait for the reply."""
    return Sent(
        [request(json.dumps(GOOD | {"stream": rng.random() < 0.5, "max_tokens": 50}).encode())], {200}, leave=True
    )


def valid(rng):
    """A request as it should be, some of it in small parts."""
    data = request(json.dumps(GOOD | {"stream": rng.random() < 0.3}).encode())
    cuts = sorted(rng.sample(range(1, len(data)), 3))
    return Sent([data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)], {200})


KINDS = (
    bad_json, bad_field, unknown_model, bad_host, broken_host, bad_origin, bad_headers, bad_route, large_body, incomplete, leaves,
    valid,
)  # fmt: skip


def sent(number, seed):
    """Request `number` of a series, and its kind."""
    rng = Random(f"{seed}/{number}")
    kind = KINDS[number % len(KINDS)]
    return kind.__name__, kind(rng)
