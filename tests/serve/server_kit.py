"""A server in a thread, on a free port, with random weights."""

from contextlib import contextmanager
from threading import Event, Thread

from serve.engine_kit import variant_of
from tiny import chat_tokenizer, lively, tiny_tokenizer

from mini_chat_gpt.serve.app import Limits, ServedModel, Server
from mini_chat_gpt.serve.command import address_of, listen
from mini_chat_gpt.serve.engine import ReplyEngine
from mini_chat_gpt.serve.guard import Access
from mini_chat_gpt.serve.http_server import HTTPServer

CONTEXT = 256


def served_model(name, tokenizer, changes=None, **engine_options):
    """A model with random weights; `changes` are fields of its configuration."""
    variant = variant_of(lively(tokenizer, context_length=CONTEXT, **changes or {}), tokenizer)
    engine = ReplyEngine([variant], **{"max_rows": 8} | engine_options)
    return ServedModel(name, engine, variant, "A description.", ["A", "B", "C"])


def tiny_models(**engine_options):
    """A chat model "tiny" and a base model "base"."""
    tokenizers = {"tiny": chat_tokenizer("Be kind."), "base": tiny_tokenizer()}
    return [served_model(name, tokenizer, **engine_options) for name, tokenizer in tokenizers.items()]


@contextmanager
def running(models=None, access=None, limits=None, **options):
    """Context of a running server; gives its address, and the `Server`."""
    lines = []
    server = Server(models or tiny_models(), access or Access(), limits or Limits(), log=lines.append, **options)
    server.lines = lines
    started = Event()
    for engine in server.engines:
        engine.start()
    with listen("127.0.0.1", 0) as listener:
        http = HTTPServer(server.app, started.set, server.shut_down, server.cancel_all)
        thread = Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert started.wait(30)
        server.http = http
        try:
            yield address_of(listener), server
        finally:
            http.should_exit = http.force_exit = True
            for engine in server.engines:
                engine.close()
            thread.join(30)
