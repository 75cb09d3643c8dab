"""Mutants of chat templates; the second reader is Jinja itself, as `transformers` sets it up."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutations import BYTES
from fuzz.oracle import Target

sys.path.append(str(Path(__file__).parents[1] / "tokenizer"))
from chat_template_samples import CONTROL, SUPPORTED
from test_template_sandbox import changed, split

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.tokenizer.chat_templates import TemplateFormat

FILE = Path("template.jinja")
CONVERSATIONS = [
    [Message("user", " Hi \n")],
    [Message("user", "Hi"), Message("assistant", "Hello.\n")],
    [Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye")],
]
WORDS = [word for source in SUPPORTED.values() for word in split(source)]


def rendered() -> Any:
    """The text of some conversations."""
    control = {name: 1000 + at for at, name in enumerate(CONTROL)}
    chat_format = TemplateFormat.from_source(FILE.read_text(encoding="utf-8", errors="replace"), control, "<s>", "</s>")
    return [chat_format.text(messages, messages[-1].role == "user") for messages in CONVERSATIONS]


def naive() -> Any:
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    template = _cached_compile_jinja_template(FILE.read_text(encoding="utf-8", errors="replace"))
    return [
        template.render(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=messages[-1].role == "user",
            bos_token="<s>",
            eos_token="</s>",
        )
        for messages in CONVERSATIONS
    ]


def _change_words(data: bytes, rng: Random) -> tuple[bytes, str]:
    source = changed(rng, [data.decode()], WORDS)
    return source.encode(), "words of the template"


def targets(folder: Path) -> list[Target]:
    made = []
    for name in ("smollm2", "llama3.2", "gemma3", "qwen3", "mistral3"):
        (folder / name).mkdir()
        (folder / name / FILE).write_text(SUPPORTED[name], encoding="utf-8")
        made.append(
            Target(name, folder / name, [FILE], rendered, naive, changes={".jinja": (*[_change_words] * 4, *BYTES)})
        )
    return made
