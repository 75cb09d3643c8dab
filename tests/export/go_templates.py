"""Templates of Go's text/template: rendered by Go if it is installed, and by a small evaluator of what the exporter writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mini_chat_gpt.chat_format import Message

PROGRAM = """package main

import (
    "encoding/json"
    "os"
    "text/template"
)

type Message struct{ Role, Content string }

func main() {
    var cases []struct {
        Template string
        Messages []Message
        System   string
    }
    if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
        panic(err)
    }
    texts := []string{}
    for _, one := range cases {
        parsed := template.Must(template.New("").Option("missingkey=error").Parse(one.Template))
        file, _ := os.CreateTemp("", "rendered")
        values := map[string]any{"Messages": one.Messages, "System": one.System, "Response": ""}
        if err := parsed.Execute(file, values); err != nil {
            panic(err)
        }
        text, _ := os.ReadFile(file.Name())
        os.Remove(file.Name())
        texts = append(texts, string(text))
    }
    json.NewEncoder(os.Stdout).Encode(texts)
}
"""


def values_of(messages: Sequence[Message]) -> dict[str, Any]:
    """What Ollama gives to a template for a conversation."""
    system = "\n\n".join(one.content for one in messages if one.role == "system")
    return {"Messages": [{"Role": one.role, "Content": one.content} for one in messages], "System": system}


def rendered_by_go(folder: Path, cases: Sequence[tuple[str, Sequence[Message]]]) -> list[str]:
    """The texts of templates for conversations, by Go itself. Skips the test if Go is not installed."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed (Debian: golang-go); this test renders templates with it")
    (folder / "main.go").write_text(PROGRAM)
    asked = json.dumps([{"Template": template, **values_of(messages)} for template, messages in cases])
    done = subprocess.run(
        ["go", "run", "main.go"], cwd=folder, input=asked, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def rendered(template: str, messages: Sequence[Message]) -> str:
    """The text of a template that has `range` over .Messages, `if` with eq, not, and, and values, as the exporter writes them."""
    tokens = re.split(r"(\{\{.*?\}\})", template)
    given = values_of(messages) | {"Response": ""}
    text, rest = _block(tokens, given, given, None)
    assert not rest, rest
    return text


def _block(tokens: list[str], top: dict[str, Any], dot: Any, index: int | None) -> tuple[str, list[str]]:
    """The text up to the `end` that closes the block, and what follows it."""
    parts = []
    while tokens:
        token, *tokens = tokens
        action = token[2:-2].strip() if token.startswith("{{") else None
        if action is None:
            parts.append(token)
        elif action == "end":
            break
        elif action == "range $i, $_ := .Messages":
            after = tokens
            for number, message in enumerate(top["Messages"]):
                text, after = _block(tokens, top, message, number)
                parts.append(text)
            if not top["Messages"]:
                _, after = _block(tokens, top, {}, None)
            tokens = after
        elif action.startswith("if "):
            text, tokens = _block(tokens, top, dot, index)
            parts.append(text if _true(action[3:], top, dot, index) else "")
        else:
            parts.append(_value(action, top, dot))
    return "".join(parts), tokens


def _true(condition: str, top: dict[str, Any], dot: Any, index: int | None) -> bool:
    if match := re.fullmatch(r'eq \.Role "(\w+)"', condition):
        return bool(dot["Role"] == match[1])
    if condition == "not .System":
        return not dot["System"]
    assert condition == "and $.System (eq $i 1)", condition
    return bool(top["System"]) and index == 1


def _value(action: str, top: dict[str, Any], dot: Any) -> str:
    if action == '"{"':
        return "{"
    return str(top[action[2:]] if action.startswith("$.") else dot[action[1:]])
