"""The server is for this machine, unless its options say otherwise, and a request takes no more than it may."""

import socket
import time

import httpx
import pytest
from serve.server_kit import running
from starlette.datastructures import Headers

from mini_chat_gpt.serve.app import PAGE, Limits
from mini_chat_gpt.serve.errors import APIError
from mini_chat_gpt.serve.guard import Access, host_name

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def refusal(access, path="/v1/models", **headers):
    """The status with which a request is refused; None if it is not."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    try:
        access.check(path, Headers(raw=raw))
    except APIError as error:
        return error.status
    return None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", None), ("localhost:8080", None), ("LOCALHOST:1", None), ("127.0.0.1:8080", None), ("[::1]:8080", None),
        ("my-host:80", None), ("evil.example", 403), ("evil.example:8080", 403), ("localhost.evil.example", 403),
        ("192.168.1.5", 403), ("", 400), ("a b", 400), ("localhost:x", 400), ("[::1", 400), ("localhost@evil", 400),
    ],
)  # fmt: skip
def test_the_host_must_be_this_machine(host, status):
    assert refusal(Access(hosts=frozenset({"my-host"})), host=host) == status


def test_a_missing_or_second_host_is_refused():
    assert refusal(Access()) == 400
    with pytest.raises(APIError):
        Access().check("/", Headers(raw=[(b"host", b"localhost"), (b"host", b"localhost")]))


def test_all_addresses_are_allowed_only_when_the_server_listens_on_all():
    assert refusal(Access(any_ip=True), host="192.168.1.5:8080") is None
    assert refusal(Access(any_ip=True), host="evil.example") == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8080", None), ("https://localhost:8080", None), ("https://good.example", None),
        ("http://localhost:3000", 403), ("http://evil.example", 403), ("null", 403), ("", 403), ("http://localhost:8080/", 403),
        ("https://good.example.evil", 403), ("http://[", 403), ("file://localhost:8080", 403),
    ],
)  # fmt: skip
def test_pages_of_other_sites_are_refused(origin, status):
    access = Access(origins=frozenset({"https://good.example"}))
    assert refusal(access, host="localhost:8080", origin=origin) == status


def test_host_names_are_taken_from_the_header():
    assert host_name("[::1]:80") == "::1"
    assert host_name("Example.ORG.") == "example.org"


@pytest.fixture(scope="module")
def address():
    access = Access(origins=frozenset({"https://good.example"}), api_key="secret-ü")
    with running(access=access, limits=Limits(body_bytes=2000, tokens=100)) as (address, _):
        yield address


def test_the_key_is_needed_for_the_api_but_not_for_the_page(address):
    key = {"authorization": "Bearer secret-ü".encode()}
    assert httpx.get(f"{address}/v1/models", headers=key).status_code == 200
    assert httpx.get(f"{address}/health").status_code == 200
    assert httpx.get(f"{address}/assets/none.js").status_code == 404
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"authorization": "Bearer"}):
        for path in ("/v1/models", "//v1/models", "/metrics"):
            response = httpx.get(address + path, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


def test_an_allowed_site_gets_the_headers_for_it_and_others_none(address):
    ask = {"access-control-request-method": "POST"}
    allowed = httpx.options(f"{address}/v1/chat/completions", headers=ask | {"origin": "https://good.example"})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-credentials" not in allowed.headers
    refused = httpx.options(f"{address}/v1/chat/completions", headers=ask | {"origin": "https://evil.example"})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


def test_every_response_forbids_foreign_scripts(address):
    for path in ("/", "/health", "/v1/models", "/nothing"):
        policy = httpx.get(address + path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_assets_are_only_those_of_the_page(address):
    assert httpx.get(f"{address}/assets/conversation.yaml").status_code == 404
    assert httpx.get(f"{address}/assets/..%2f..%2fpyproject.toml").status_code == 404
    page, script = httpx.get(f"{address}/"), httpx.get(f"{address}/assets/serve.js")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert (page.status_code, script.status_code) == (200, 200)


@pytest.fixture(scope="module")
def open_address():
    with running(limits=Limits(body_bytes=2000, tokens=100)) as (address, _):
        yield address


def test_a_body_that_is_too_large_is_413_with_and_without_a_length(open_address):
    url = f"{open_address}/v1/chat/completions"
    assert httpx.post(url, content=b"x" * 3000).status_code == 413
    assert httpx.post(url, content=(b"x" * 500 for _ in range(8))).status_code == 413
    assert httpx.post(url, content=b"x", headers={"content-encoding": "gzip"}).status_code == 415
    assert httpx.post(url, json=HELLO).status_code == 200


def test_slow_senders_are_cut_off(open_address, monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.serve.app.BODY_SECONDS", 0.2)
    monkeypatch.setattr("mini_chat_gpt.serve.http_server.HEADER_SECONDS", 0.2)
    host, port = open_address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHo")
        assert connection.recv(1000) == b""  # closed


def test_a_client_that_does_not_read_is_cut_off(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.serve.http_server.WRITE_SECONDS", 0.2)
    monkeypatch.setitem(PAGE, "large.js", "text/javascript")
    monkeypatch.setattr("mini_chat_gpt.assets.text", lambda _: "x" * 2**25)  # more than the buffers of the network hold
    with running() as (address, server):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"GET /assets/large.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            deadline = time.monotonic() + 20
            while server.http.server_state.total_requests == 0 or server.http.server_state.connections:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_too_many_connections_are_503(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.serve.http_server.MAX_CONNECTIONS", 2)
    with running() as (address, server), httpx.Client() as first, httpx.Client() as second:
        assert [client.get(f"{address}/health").status_code for client in (first, second)] == [200, 200]
        refused = httpx.get(f"{address}/health")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_connections")
        assert int(refused.headers["retry-after"]) > 0
        while len(server.http.server_state.connections) > 2:
            time.sleep(0.01)
        assert first.get(f"{address}/health").status_code == 200


def test_a_reply_that_takes_too_long_is_503(monkeypatch):
    from mini_chat_gpt.serve.engine import ReplyEngine

    step = ReplyEngine.step
    monkeypatch.setattr(ReplyEngine, "step", lambda self: (time.sleep(0.1), step(self)))
    with running(limits=Limits(seconds=0.05)) as (address, _):
        response = httpx.post(f"{address}/v1/chat/completions", json=HELLO | {"max_tokens": 200}, timeout=30)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "timeout")
        assert "retry-after" in response.headers
        stream = httpx.post(
            f"{address}/v1/chat/completions", json=HELLO | {"max_tokens": 200, "stream": True}, timeout=30
        )
        assert '"code":"timeout"' in stream.text
        assert stream.text.endswith("data: [DONE]\n\n")
