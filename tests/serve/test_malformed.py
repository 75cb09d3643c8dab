"""Malformed requests get the right status, and leave the server as it was."""

import os
import socket

import httpx
import pytest
from serve.malformed import CLOSED, KINDS, sent
from serve.server_kit import running

from mini_chat_gpt.common.resources import memory_in_use
from mini_chat_gpt.serve.app import Limits


@pytest.fixture(scope="module")
def served():
    patch = pytest.MonkeyPatch()
    patch.setattr("mini_chat_gpt.serve.app.BODY_SECONDS", 0.3)
    patch.setattr("mini_chat_gpt.serve.http_server.HEADER_SECONDS", 0.3)
    with running(limits=Limits(body_bytes=50_000, tokens=100)) as pair:
        yield pair
    patch.undo()


def status_of(address, request):
    """Send a request over a socket; the status of the response, or CLOSED."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        try:
            for part in request.parts:
                connection.sendall(part)
            if request.half_close:
                connection.shutdown(socket.SHUT_WR)
            if request.leave:
                return None
            answer = b""
            while part := connection.recv(65536):
                answer += part
        except (ConnectionError, BrokenPipeError):
            return CLOSED
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else CLOSED


def check(served, numbers, seed):
    address, server = served
    wrong = []
    for number in numbers:
        kind, request = sent(number, seed)
        status = status_of(address, request)
        if status is not None and status not in request.right:
            wrong.append((number, kind, status, request.parts[0][:200]))
    assert not wrong
    assert httpx.get(f"{address}/health", timeout=30).status_code == 200
    assert not [line for line in server.lines if "error" in line and "tokens in" not in line]


def test_malformed_requests_get_the_right_status(served):
    check(served, range(5 * len(KINDS)), seed=1)


@pytest.mark.slow
def test_two_thousand_malformed_requests_leave_the_memory_as_it_was(served):
    check(served, range(300), seed=2)
    before = memory_in_use("cpu")
    check(served, range(300, 2000), seed=2)
    assert memory_in_use("cpu") < before + 20 * 2**20
    _, server = served
    assert all(not engine.rows and not engine.queue for engine in server.engines)
    if os.path.isdir("/proc/self/fd"):
        assert len(os.listdir("/proc/self/fd")) < 200
