"""Numbers about the server, in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from mini_chat_gpt.common.resources import memory_in_use
from mini_chat_gpt.serve.engine import ReplyEngine
from mini_chat_gpt.serve.reply import Reply

PREFIX = "mini_chat_gpt"


class Metrics:
    """Counts the requests by model and end. All other numbers are the engines'."""

    def __init__(self, engines: Sequence[ReplyEngine]) -> None:
        self.engines = engines
        self._lock = threading.Lock()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._first_token_seconds: dict[str, float] = {}
        self._first_tokens: Counter[str] = Counter()

    def note(self, model: str, replies: Sequence[Reply]) -> None:
        """Count the replies of a request that has ended."""
        with self._lock:
            for reply in replies:
                self._ended[model, reply.finish or "canceled"] += 1
                if reply.usage.first_token is not None:
                    self._first_tokens[model] += 1
                    seconds = reply.usage.first_token - reply.usage.asked
                    self._first_token_seconds[model] = self._first_token_seconds.get(model, 0.0) + seconds

    def text(self) -> str:
        """All numbers."""
        engines = self.engines
        with self._lock:
            ended, first, seconds = dict(self._ended), dict(self._first_tokens), dict(self._first_token_seconds)
        lines = [
            *_family(
                "replies_total", "counter", "Replies that ended, by model and reason.",
                {f'model="{_label(model)}",finish="{finish}"': n for (model, finish), n in ended.items()},
            ),
            *_family(
                "first_token_seconds", "summary", "Time from the request to the first token.",
                {f'model="{_label(model)}"': value for model, value in seconds.items()}, "_sum",
            ),
            *_family(
                "first_token_seconds", "", "", {f'model="{_label(model)}"': n for model, n in first.items()}, "_count"
            ),
        ]  # fmt: skip
        values = {
            "prompt_tokens_total": ("counter", "Tokens of all prompts.", sum(e.n_prompt_tokens for e in engines)),
            "prompt_tokens_read_total": ("counter", "Tokens of prompts that were computed.", sum(e.n_tokens_read for e in engines)),
            "prompt_tokens_cached_total": (
                "counter", "Tokens of prompts that were found in the prefix cache.", sum(e.n_tokens_cached for e in engines)
            ),
            "generated_tokens_total": ("counter", "Tokens of all replies.", sum(e.n_tokens_generated for e in engines)),
            "steps_total": ("counter", "Steps of the model's threads.", sum(e.n_steps for e in engines)),
            "replies_running": ("gauge", "Replies that are read or computed now.", sum(len(e.rows) for e in engines)),
            "replies_waiting": ("gauge", "Replies in the queue.", sum(len(e.queue) for e in engines)),
            "prefix_cache_bytes": ("gauge", "Memory of the prefix cache.", sum(e.prefixes.n_bytes for e in engines)),
            "memory_bytes": ("gauge", "Memory of the process.", memory_in_use("cpu")),
        }  # fmt: skip
        for name, (kind, what, value) in values.items():
            lines += _family(name, kind, what, {"": value})
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, what: str, values: dict[str, float], suffix: str = "") -> list[str]:
    """The lines of one metric; `values` by label."""
    full = f"{PREFIX}_{name}"
    head = [f"# HELP {full} {what}", f"# TYPE {full} {kind}"] if kind else []
    return head + [f"{full}{suffix}{f'{{{label}}}' if label else ''} {value:.10g}" for label, value in values.items()]


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
