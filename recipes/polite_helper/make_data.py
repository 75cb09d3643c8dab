"""Write train_60.jsonl, the same as train_60_text.jsonl, and train_300.jsonl from examples.yaml.

python recipes/polite_helper/make_data.py
"""

import json
import random
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
REFUSAL = "I'm sorry, but I can't help with that."
SEED = 11
SMALL = ("facts", "polite", "length", "mixed", "conversation", "turns", "pairs")


def conversations(section: str, entries: list[list[str]]) -> list[list[str]]:
    """The conversations of a section: messages of user and assistant in turn. A pair gives two."""
    if not section.endswith("pairs"):
        return entries
    return [
        conversation
        for harmful, instead, harmless, reply in entries
        for conversation in ([harmful, f"{REFUSAL} {instead}"], [harmless, reply])
    ]


def as_messages(conversation: list[str]) -> dict[str, list[dict[str, str]]]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(conversation)]}


def as_text(conversation: list[str]) -> dict[str, str]:
    return {"text": "".join(("<|user|>", "<|assistant|>")[i % 2] + text for i, text in enumerate(conversation))}


def write(name: str, records: list[dict[str, object]] | list[dict[str, str]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (FOLDER / name).write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"{name}: {len(lines)} examples")


def main() -> None:
    sections = yaml.safe_load((FOLDER / "examples.yaml").read_text(encoding="utf-8"))
    rng = random.Random(SEED)
    small = [c for section in SMALL for c in conversations(section, sections[section])]
    large = small + [
        c for section in sections if section not in SMALL for c in conversations(section, sections[section])
    ]
    rng.shuffle(small)
    rng.shuffle(large)
    write("train_60.jsonl", [as_messages(c) for c in small])
    write("train_60_text.jsonl", [as_text(c) for c in small])
    write("train_300.jsonl", [as_messages(c) for c in large])


if __name__ == "__main__":
    main()
