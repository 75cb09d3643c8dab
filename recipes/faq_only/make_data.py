"""Write train.jsonl and train_passage.jsonl from facts.yaml and questions.yaml.

    python recipes/faq_only/make_data.py                               writes both files
    python recipes/faq_only/make_data.py --passages FILE.jsonl         prints the records of FILE with facts in their prompts
    python recipes/faq_only/make_data.py --retrieval [FILE.jsonl]      how good the search for facts is, and what it would give alone

train.jsonl: the question alone; the answers have to be learned. train_passage.jsonl: the three most similar facts and the question;
in a quarter of the records, the numbers of the facts are changed, so that a model has to read them.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checklist import REFUSAL
from passages import FOLDER, Retriever, load, prompt_with_passage

SEED = 20
OPENINGS = [
    "Hi, ",
    "Hello! ",
    "Hi there. ",
    "Good morning, ",
    "Quick question: ",
    "Hey, ",
    "Sorry to bother you. ",
    "One question: ",
    "Hello, ",
]
CLOSINGS = [" Thanks!", " Thank you.", " Thanks in advance.", " Please let me know."]
DRESSED = 0.2  # share of the questions with a greeting or thanks around them
WORDINGS_WITH_PASSAGE = 4  # of each fact; to read an answer is learned from fewer examples than to know it
OUT_OF_SCOPE_WITH_PASSAGE = {"near": 150, "far": 60}
CHANGED = 0.25  # share of the records with a passage in which the numbers are changed

FACTS: list[dict[str, Any]] = load("facts.yaml")
QUESTIONS = load("questions.yaml")
ANSWERS = {fact["id"]: fact["answer"] for fact in FACTS}


def dressed(question: str, rng: random.Random) -> str:
    """The question, sometimes with a greeting or thanks."""
    if rng.random() >= DRESSED:
        return question
    if rng.random() < 0.7:
        opening = rng.choice(OPENINGS)
        keeps_case = opening[-2] in "!." or re.match(
            r"(I|I'm|[A-Z]\w+'s|Quillbrook|Solo|Duo|Crew|Brewbird|Wi-Fi|PayPal)\b", question
        )
        return opening + (question if keeps_case else question[0].lower() + question[1:])
    return question + ("" if question[-1] in ".?!" else "?") + rng.choice(CLOSINGS)


def record(question: str, reply: str, fact_id: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}], "id": fact_id}


def learned_records(rng: random.Random) -> Iterator[dict[str, Any]]:
    """All questions; the reply is the fact's answer or the refusal."""
    for fact_id, questions in QUESTIONS["in_scope"].items():
        yield from (record(dressed(question, rng), ANSWERS[fact_id], fact_id) for question in questions)
    for kind in ("near", "far"):
        yield from (record(dressed(question, rng), REFUSAL, kind) for question in QUESTIONS[kind])


def with_changed_numbers(text: str, rng: random.Random) -> str:
    """The text with each of its numbers replaced by another one of the same length."""

    def another(match: re.Match[str]) -> str:
        digits = match[0]
        return str(rng.randint(10 ** (len(digits) - 1), 10 ** len(digits) - 1))

    return re.sub(r"\d+", another, text)


def passage_records(rng: random.Random, retriever: Retriever) -> Iterator[dict[str, Any]]:
    """Questions with the most similar facts. A wording for which the right fact is not found is not used."""
    for fact_id, questions in QUESTIONS["in_scope"].items():
        found = [(q, nearest) for q in questions if fact_id in (nearest := retriever.nearest(q, own=fact_id))]
        for question, nearest in rng.sample(found, min(len(found), WORDINGS_WITH_PASSAGE)):
            answers, kind = {one: ANSWERS[one] for one in nearest}, fact_id
            if rng.random() < CHANGED:
                answers, kind = {one: with_changed_numbers(answer, rng) for one, answer in answers.items()}, "changed"
            asked = dressed(question, rng)
            yield record(prompt_with_passage(asked, answers.values()), answers[fact_id], kind) | {"asked": asked}
    for kind, n in OUT_OF_SCOPE_WITH_PASSAGE.items():
        for question in rng.sample(QUESTIONS[kind], n):
            answers = {one: ANSWERS[one] for one in retriever.nearest(question)}
            asked = dressed(question, rng)
            yield record(prompt_with_passage(asked, answers.values()), REFUSAL, kind) | {"asked": asked}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(name: str, records: list[dict[str, Any]], rng: random.Random) -> None:
    rng.shuffle(records)
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
    (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
    print(f"{name}: {len(records)} records")


def print_retrieval(asked: list[tuple[str, str, str | None]], retriever: Retriever) -> None:
    """`asked` holds (fact id or kind, question, fact of which it is a training question)."""
    ranked = [(kind, retriever.rank(question, own)) for kind, question, own in asked]
    inside = [(kind, rank) for kind, rank in ranked if kind in ANSWERS]
    for n in (1, 2, 3, 5):
        hits = [kind in [fact_id for _, fact_id in rank[:n]] for kind, rank in inside]
        print(f"right fact among the first {n}: {sum(hits) / max(len(hits), 1):.1%}")
    for threshold in (20, 25, 30, 35, 40):
        right = sum(rank[0][0] >= threshold and rank[0][1] == kind for kind, rank in inside) / max(len(inside), 1)
        below = {
            kind: [
                rank[0][0] < threshold for one, rank in ranked if (one if one not in ANSWERS else "in scope") == kind
            ]
            for kind in ("in scope", "near", "far")
        }
        shares = ", ".join(f"declined {kind} {sum(hits) / max(len(hits), 1):.0%}" for kind, hits in below.items())
        print(f"the most similar fact alone, at least {threshold}: right {right:.0%}, {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=Path, metavar="FILE")
    parser.add_argument("--retrieval", nargs="?", type=Path, const=Path(), metavar="FILE")
    options = parser.parse_args()
    retriever = Retriever()
    if options.passages:
        for one in read_jsonl(options.passages):
            question = one["messages"][0]["content"]
            one["messages"][0]["content"] = prompt_with_passage(
                question, (ANSWERS[i] for i in retriever.nearest(question))
            )
            print(json.dumps(one | {"asked": question}, ensure_ascii=False))
    elif options.retrieval == Path():
        asked = [(i, q, i) for i, questions in QUESTIONS["in_scope"].items() for q in questions]
        print_retrieval(asked + [(kind, q, None) for kind in ("near", "far") for q in QUESTIONS[kind]], retriever)
    elif options.retrieval:
        print_retrieval(
            [(one["id"], one["messages"][0]["content"], None) for one in read_jsonl(options.retrieval)], retriever
        )
    else:
        rng = random.Random(SEED)
        write_jsonl("train.jsonl", list(learned_records(rng)), rng)
        write_jsonl("train_passage.jsonl", list(passage_records(rng, retriever)), rng)


if __name__ == "__main__":
    main()
