"""Speed of `render` for a model from elsewhere, compared with the `tokenizers` library on the string of the model's own template.

    mini-chat-gpt import SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    python benchmarks/rendering.py smollm2

The library gets the finished string and finds the control tokens in it; `render` puts the control tokens in by id and encodes
the texts between them, so that no content can spell one. Both are timed in turn, and the ids are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.tokenizer.chat_templates import TemplateFormat
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

SENTENCE = "Once upon a time there was a little girl named Lily. She had a red ball, and she liked it very much. "


def conversation(n_exchanges: int, n_sentences: int) -> list[Message]:
    return [
        Message(role, f"{n}: {SENTENCE * n_sentences}") for n in range(n_exchanges) for role in ("user", "assistant")
    ]


def seconds(action: Callable[[], object], times: int = 30) -> float:
    started = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - started) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder that `mini-chat-gpt import` wrote")
    folder: Path = parser.parse_args().checkpoint
    tokenizer, library = ChatTokenizer.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    chat_format = tokenizer.chat_format
    if not isinstance(chat_format, TemplateFormat):
        raise SystemExit(f"{folder} has no chat template of its own.")
    print(f"{'exchanges':>9} {'tokens':>7} {'encoding, ms':>13} {'render, ms':>11} {'speed of render':>16}")
    for n_exchanges, n_sentences in ((1, 1), (2, 4), (8, 4), (4, 30)):
        messages = conversation(n_exchanges, n_sentences)
        text = chat_format.text(messages)
        ids = render(messages, tokenizer)[0]
        if ids != library.encode(text, add_special_tokens=False).ids:
            raise SystemExit("The ids differ.")
        pairs = [
            (
                seconds(partial(library.encode, text, add_special_tokens=False)),
                seconds(partial(render, messages, tokenizer)),
            )
            for _ in range(9)
        ]
        encoding, rendering = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"{n_exchanges:9} {len(ids):7,} {1000 * encoding:13.3f} {1000 * rendering:11.3f} {ratio:15.0%}")


if __name__ == "__main__":
    main()
