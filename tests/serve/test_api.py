"""The API as clients use it: OpenAI's library, and plain HTTP."""

import asyncio
import json
import threading
import time

import httpx
import openai
import pytest
from serve.server_kit import CONTEXT, running, served_model
from tiny import chat_tokenizer

from mini_chat_gpt.generation import generate
from mini_chat_gpt.serve.responses import event

HELLO = [{"role": "user", "content": "Once upon a time"}]


@pytest.fixture(scope="module")
def served():
    with running() as (address, server):
        yield address, server


@pytest.fixture(scope="module")
def address(served):
    return served[0]


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client, **changes):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, "seed": 3, "temperature": 0.9, "max_tokens": 20} | changes
    )


def post(address, path="/v1/chat/completions", **body):
    return httpx.post(address + path, json=body, timeout=60)


def test_a_reply_equals_that_of_generate(client, served):
    model = served[1].models["tiny"].variant
    [expected] = generate(
        model.model, model.tokenizer, ["Once upon a time"], max_new_tokens=20, temperature=0.9, seed=3
    )
    reply = chat(client)
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.model == "tiny"


def test_a_stream_has_the_role_first_the_end_last_and_usage_on_demand(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]].count(None) == len(chunks) - 2
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chat(client, stream=True))


def test_the_asynchronous_client(address):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            replies = await asyncio.gather(*(chat(client, seed=seed) for seed in (3, 4, 3)))
            stream = await chat(client, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [reply.choices[0].message.content for reply in replies], text

    (first, other, again), streamed = asyncio.run(main())
    assert first == again == streamed
    assert other != first


def test_characters_are_whole_in_every_chunk(address):
    body = {"model": "tiny", "messages": HELLO, "seed": 1, "temperature": 2.0, "max_tokens": 100, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = b"".join(response.iter_raw())
    events = raw.decode("utf-8").split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    whole = post(address, **body | {"stream": False}).json()["choices"][0]["message"]["content"]
    texts = [json.loads(e[6:])["choices"][0]["delta"].get("content", "") for e in events[:-2] if e.startswith("data:")]
    assert "".join(texts) == whole


def test_an_event_is_one_line_for_every_client():
    """httpx divides at the line ends of Unicode, too."""
    text = "a\u2028b\u0085c\nd\x0ce 😀"
    [line, end] = event({"content": text}).decode().splitlines()
    assert (json.loads(line.removeprefix("data: ")), end) == ({"content": text}, "")


def test_log_probabilities_with_alternatives(client):
    reply = chat(client, logprobs=True, top_logprobs=3)
    tokens = reply.choices[0].logprobs.content
    assert (
        b"".join(bytes(token.bytes) for token in tokens)
        .decode("utf-8", "replace")
        .startswith(reply.choices[0].message.content[:3])
    )
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
    streamed = [c.choices[0].logprobs for c in chat(client, logprobs=True, top_logprobs=3, stream=True)]
    assert [t for part in streamed if part for t in part.content] == tokens
    assert chat(client).choices[0].logprobs is None


def test_several_choices_differ_and_are_reproducible(client):
    texts = [choice.message.content for choice in chat(client, n=3).choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in chat(client, n=3).choices]
    streamed = ["", "", ""]
    for chunk in chat(client, n=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_stop_strings_never_appear(client):
    whole = chat(client).choices[0].message.content
    stop = whole[4:6]
    expected = whole[: whole.index(stop)]
    reply = chat(client, stop=stop)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (expected, "stop")
    chunks = list(chat(client, stop=["unused", stop], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected


def test_completions_continue_a_text(client):
    settings = {"model": "base", "seed": 1, "max_tokens": 8, "temperature": 1.0}
    reply = client.completions.create(prompt="Once upon", logprobs=2, **settings)
    probs = reply.choices[0].logprobs
    assert len(probs.tokens) == len(probs.token_logprobs) == len(probs.top_logprobs) == len(probs.text_offset)
    assert reply.object == "text_completion"
    text = "".join(c.choices[0].text for c in client.completions.create(prompt="Once upon", stream=True, **settings))
    assert text == reply.choices[0].text
    several = client.completions.create(prompt=["Once upon", "Sara"], **settings)
    assert [choice.index for choice in several.choices] == [0, 1]


def test_what_clients_send_without_effect_is_accepted(address):
    parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": "a time"}]
    body = {
        "model": "tiny", "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
        "max_completion_tokens": 3, "user": "me", "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
        "store": False, "metadata": {}, "stop": None, "top_k": -1, "min_p": 0.0, "n": 1, "parallel_tool_calls": True,
    }  # fmt: skip
    response = post(address, **body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize(
    ("changes", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"model": "base"}, 400, "model", "no_chat_format"),
        ({"messages": [{"role": "user", "content": "a b c " * CONTEXT}]}, 400, "messages", "context_length_exceeded"),
        ({"messages": []}, 400, "messages", None),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "messages", None),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages.0.content.0",
            "unsupported",
        ),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias", "unsupported"),
        ({"chat_template": "{{ 1 }}"}, 400, "chat_template", "unsupported"),
        ({"chat_template_kwargs": {"x": 1}}, 400, "chat_template_kwargs.x", "unsupported"),
        ({"temperature": -1}, 400, "temperature", None),
        ({"temperature": "hot"}, 400, "temperature", None),
        ({"max_tokens": 0}, 400, "max_tokens", None),
        ({"max_tokens": 10**6}, 400, "max_tokens", None),
        ({"n": 1000}, 400, "n", None),
        ({"top_logprobs": 2}, 400, "top_logprobs", None),
        ({"presence_penalty": 3}, 400, "presence_penalty", None),
        ({"stop": ["x"] * 99}, 400, "stop", None),
        ({"messages": [{"role": "user", "content": " " * 10**6}]}, 400, "messages", None),
    ],
)
def test_mistakes_get_an_error_object(address, changes, status, param, code):
    response = post(address, **{"model": "tiny", "messages": HELLO} | changes)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]


def test_a_prompt_that_can_not_be_divided_into_tokens_is_a_mistake_in_the_request(address):
    response = post(address, "/v1/completions", model="base", prompt=" " * 10**6)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def test_openais_client_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="There is no model 'other'; the models are tiny, base"):
        chat(client, model="other")
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "a b c " * CONTEXT}])
    assert caught.value.code == "context_length_exceeded"


def test_models_are_listed_also_with_a_doubled_slash(address):
    for path in ("/v1/models", "/v1//models", "//v1/models"):
        entries = httpx.get(address + path).json()["data"]
        assert [entry["id"] for entry in entries] == ["tiny", "base"]
    assert entries[0] | {"created": 0} == {
        "id": "tiny", "object": "model", "created": 0, "owned_by": "mini-chat-gpt", "context_length": CONTEXT,
        "description": "A description.", "examples": ["A", "B", "C"], "system_message": "Be kind.",
    }  # fmt: skip
    assert httpx.get(f"{address}/v1/models/base").json()["id"] == "base"
    assert httpx.get(f"{address}/v1/models/none").status_code == 404


def test_health_metrics_unknown_paths_and_methods(address, served):
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    before = served[1].engines[0].n_tokens_generated
    post(address, model="tiny", messages=HELLO, max_tokens=5, temperature=0)
    metrics = httpx.get(f"{address}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(values["mini_chat_gpt_generated_tokens_total"]) > before
    assert httpx.get(f"{address}/v1/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{address}/v1/chat/completions").status_code == 405


def test_the_log_has_no_text_unless_requested():
    for log_text in (False, True):
        with running(log_text=log_text) as (address, server):
            post(address, model="tiny", messages=HELLO, max_tokens=3)
            assert any("Once upon" in line for line in server.lines) == log_text
            assert any("tiny: " in line and "tokens in" in line for line in server.lines)


def test_models_of_other_families_reply_streamed_and_not():
    families = {
        "gpt-2": {"position": "learned", "norm": "layernorm", "bias": True, "qkv_bias": True, "activation": "gelu_tanh"},
        "qwen3": {"qk_norm": True, "head_dim": 16},
        "gemma": {
            "norm_placement": "both", "norm_offset": True, "qk_norm": True, "activation": "geglu", "embedding_factor": 5.6,
            "windows": [4, None], "window_rope_theta": 1e3,
        },
    }  # fmt: skip
    with running([served_model(name, chat_tokenizer(), changes) for name, changes in families.items()]) as (
        address,
        server,
    ):
        for name in families:
            model = server.models[name].variant
            [expected] = generate(model.model, model.tokenizer, ["Hi"], max_new_tokens=20, temperature=0.9, seed=3)
            body = {
                "model": name,
                "messages": [{"role": "user", "content": "Hi"}],
                "seed": 3,
                "temperature": 0.9,
                "max_tokens": 20,
            }
            assert post(address, **body).json()["choices"][0]["message"]["content"] == expected
            events = [
                line[6:] for line in post(address, **body, stream=True).text.splitlines() if line.startswith("data: {")
            ]
            assert "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events) == expected


def ended(server, n=1, seconds=20.0):
    """Wait until n replies of the chat model have ended."""
    deadline = time.monotonic() + seconds
    while sum(server.engines[0].n_ended.values()) < n:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return server.engines[0].n_ended


@pytest.fixture
def slow_step(monkeypatch):
    """Steps of 20 ms, so that a client can leave in the middle of a reply."""
    from mini_chat_gpt.serve.engine import ReplyEngine

    step = ReplyEngine.step
    monkeypatch.setattr(ReplyEngine, "step", lambda self: (time.sleep(0.02), step(self)))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(slow_step, stream):
    with running() as (address, server):
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 200, "n": 4, "temperature": 3.0, "stream": stream}
        if stream:
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
                next(response.iter_raw())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.5)
        assert ended(server, 4)["canceled"] >= 1
        time.sleep(0.1)  # to the end of the step
        assert not server.engines[0].rows
        assert post(address, **body | {"max_tokens": 2, "stream": False}).status_code == 200


def test_a_full_queue_is_429_and_a_stop_finishes_what_runs(slow_step):
    from serve.server_kit import tiny_models

    with running(tiny_models(max_rows=1, max_queue=0)) as (address, server):
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 60, "seed": 2, "temperature": 3.0}
        replies = []
        thread = threading.Thread(target=lambda: replies.append(post(address, **body)))
        thread.start()
        while not server.engines[0].rows:
            time.sleep(0.01)
        refused = post(address, **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) > 0
        server.shut_down()  # as SIGTERM does
        refused = post(address, **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        thread.join(30)
        assert replies[0].json()["choices"][0]["finish_reason"] in ("stop", "length")
        several = post(address, **body | {"n": 2})  # would be refused at any time
        assert (several.status_code, several.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_signal_tells_clients_that_the_server_stops(slow_step, stream):
    with running() as (address, server):
        replies = []
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 200, "temperature": 3.0, "stream": stream}
        thread = threading.Thread(target=lambda: replies.append(post(address, **body)))
        thread.start()
        while not server.engines[0].rows:
            time.sleep(0.01)
        server.shut_down()
        server.cancel_all()
        thread.join(30)
        assert '"code":"shutting_down"' in replies[0].text
        assert replies[0].status_code == (200 if stream else 503)


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_fails_ends_the_request_and_the_other_choices(slow_step, monkeypatch, stream):
    from mini_chat_gpt.serve.reply import Reply

    push = Reply.push
    monkeypatch.setattr(Reply, "push", lambda self, *token: 1 / 0 if self.asked.choice == 1 else push(self, *token))
    with running() as (address, server):
        response = post(address, model="tiny", messages=HELLO, max_tokens=200, temperature=3.0, n=3, stream=stream)
        assert '"code":"internal_error"' in response.text
        assert response.status_code == (200 if stream else 500)
        assert ended(server, 3) == {"error": 1, "canceled": 2}


def test_comments_keep_the_connection_alive_while_nothing_is_ready(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.serve.app.KEEP_ALIVE_SECONDS", 0.05)
    from mini_chat_gpt.serve.engine import ReplyEngine

    step = ReplyEngine.step
    monkeypatch.setattr(ReplyEngine, "step", lambda self: (time.sleep(0.3), step(self)))
    with running() as (address, _):
        response = post(address, model="tiny", messages=HELLO, max_tokens=2, stream=True)
        assert ": keep-alive\n\n" in response.text
        assert response.text.endswith("data: [DONE]\n\n")
