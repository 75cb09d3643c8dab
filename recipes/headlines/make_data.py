"""Write train.jsonl: the manual headlines in headlines.yaml, and headlines made from templates.yaml.

    python recipes/headlines/make_data.py

A slot such as {club} takes a word of its list; {firm/low} and {event/up} change the case of the first letter.
No word occurs twice in a headline.
"""

import json
import random
import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
LABELS = ("sports", "technology", "business", "other")
SEED = 5
GENERATED = 84  # headlines from templates, of each label


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def filled(template: str, words: dict[str, list[str]], rng: random.Random) -> str:
    """The template with a word in each slot, all different."""
    used: set[str] = set()

    def word(match: re.Match[str]) -> str:
        name, _, case = match[1].partition("/")
        chosen = rng.choice([w for w in words[name] if w not in used])
        used.add(chosen)
        first = (
            chosen[0].upper()
            if case == "up"
            else chosen[0].lower()
            if case == "low" and not chosen.startswith("AI")
            else chosen[0]
        )
        return first + chosen[1:]

    text = re.sub(r"\{([a-z_/]+)\}", word, template)
    return text[0].upper() + text[1:]


def generated(templates: list[str], words: dict[str, list[str]], rng: random.Random) -> list[str]:
    """GENERATED different headlines, from all templates in turn."""
    made: dict[str, None] = {}
    while len(made) < GENERATED:
        made[filled(templates[len(made) % len(templates)], words, rng)] = None
    return list(made)


def records() -> list[dict[str, Any]]:
    """All records in random order."""
    rng = random.Random(SEED)
    manual, plan = load("headlines.yaml"), load("templates.yaml")
    result = []
    for label in LABELS:
        headlines = [(text, hard) for hard in (False, True) for text in manual[label]["hard" if hard else "plain"]]
        sources = [(*one, "manual") for one in headlines] + [
            (text, None, "template") for text in generated(plan["templates"][label], plan["words"], rng)
        ]
        for text, hard, source in sources:
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
            result.append({"messages": messages, "source": source} | ({} if hard is None else {"hard": hard}))
    rng.shuffle(result)
    return result


def main() -> None:
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in records()]
    (FOLDER / "train.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"train.jsonl: {len(lines)} headlines")


if __name__ == "__main__":
    main()
