"""Write train.jsonl: mails built from fragments.yaml, and those of handwritten.txt. The same seed gives the same file.

    python make_data.py [--records 500] [--seed 21]

A generated mail has one to three topics. The first sentence of its first topic names the product; sentences without a topic, other
names, dates and numbers are mixed in, so that a model has to find what a reply needs. A mail that the checklist's annotation check
rejects, or that resembles an earlier one too much, is drawn again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from checklist import APOLOGY_TOPICS, SHOP, answers_for, check, problems

FOLDER = Path(__file__).parent
TOPIC_COUNTS = {1: 38, 2: 46, 3: 16}
"""How many of 100 generated mails have one, two and three topics."""
MAIL_WORDS = (31, 80)
TALK = {1: (3, 17, 45, 35), 2: (10, 35, 40, 15), 3: (55, 35, 10, 0)}
"""Number of topics -> weights of none, one, two and three sentences without a topic."""
EXCLUSIVE = ({"late", "question:delivery"}, {"late", "damage"})
"""Topics that a generated mail does not have both of: nothing that has not arrived is damaged."""

FACTS = {
    "late": "We are sorry that your parcel is late. It usually takes 3 to 5 working days. If it has not arrived after 10 working days, "
    "please write to us, and we will send you a replacement free of charge.",
    "damage": "We are sorry about the damage. Please send us a photo of it, and we will send you a replacement free of charge.",
    "return": "You can return any unused item within 30 days of delivery. Please send {them} back in a firm box, and we will refund "
    "the price.",
    "question:material": "We use only natural materials such as wood, wool, linen and clay. Each product page names the exact material.",
    "question:care": "Please clean {them} gently with cool water and mild soap, and let {them} air-dry.",
    "question:delivery": "A parcel usually takes 3 to 5 working days.",
    "question:postage": "Shipping costs $5 and is free for orders over $60.",
    "question:abroad": "We ship worldwide, and a parcel abroad takes 7 to 14 working days.",
    "question:gift": 'We gladly wrap gifts free of charge. Please write "gift" in the note of your order.',
    "question:custom": "We gladly make custom pieces, and they take 2 weeks. Please tell us your size, color or text.",
    "question:stock": "Everything on our website is in stock, and sold-out items are back within 3 weeks.",
}
"""Topic -> the sentences of the shop."""
LAST = "Please reply to this e-mail if you have any other questions."

Record = dict[str, Any]


def framed(customer: str, text: str) -> str:
    """A reply with its greeting and its closing."""
    return f"Dear {customer},\n\n{text}\n\nKind regards,\n{SHOP}"


def usual_text(product: str, order: str | None, topics: list[str], plural: bool) -> str:
    """The shop's usual sentences for these topics."""
    about = f"the {product} from order {order}" if order else f"the {product}"
    facts = [FACTS[topic].format(them="them" if plural else "it") for topic in topics]
    return " ".join([f"Thank you for your e-mail about {about}.", *facts, LAST])


def as_record(mail: str, text: str, customer: str, order: str | None, product: str, topics: list[str]) -> Record:
    """A record of train.jsonl."""
    return {
        "messages": [{"role": "user", "content": mail}, {"role": "assistant", "content": framed(customer, text)}],
        "customer": customer,
        "order": order.lstrip("#") if order else None,
        "product": product,
        "topics": topics,
        "apology": bool(APOLOGY_TOPICS & set(topics)),
        "answers": answers_for(topics),
    }


def handwritten(path: Path) -> list[Record]:
    """The records of handwritten.txt."""
    records = []
    for block in path.read_text(encoding="utf-8").split("\n=== ")[1:]:
        head, _, body = block.partition("\n")
        customer, order, product, listed = (part.strip() for part in head.split("|"))
        mail, _, text = (part.strip() for part in body.partition("\n---\n"))
        topics = [one.strip() if one.strip() in FACTS else f"question:{one.strip()}" for one in listed.split(",")]
        number = None if order == "null" else order
        plural = product.endswith("s") and not product.endswith(("ss", "dress"))
        records.append(
            as_record(mail, text or usual_text(product, number, topics, plural), customer, number, product, topics)
        )
    return records


class MailWriter:
    """Draws mails from the fragments. Each list is used up before an entry of it comes again."""

    def __init__(self, fragments: dict[str, Any], random_: random.Random) -> None:
        self.fragments, self.random = fragments, random_
        self.decks: dict[str, list[Any]] = {}

    def draw(self, name: str, options: list[Any]) -> Any:
        """An entry of `options`, evenly over all calls with this name."""
        if not self.decks.get(name):
            self.decks[name] = self.random.sample(options, len(options))
        return self.decks[name].pop()

    def customer(self) -> str:
        """A name as in a signature."""
        first = self.draw("first", self.fragments["first_names"])
        last = self.draw("last", self.fragments["last_names"])
        title = self.random.choice(self.fragments["titles"])
        forms = {first: 50, f"{first} {last}": 36, f"{title} {last}": 8, f"{first[0]}. {last}": 6}
        return self.random.choices(list(forms), list(forms.values()))[0]

    def order(self) -> str:
        """An order number in one of the usual forms."""
        n_digits = self.random.choices((4, 5, 6), (3, 5, 2))[0]
        digits = str(self.random.randrange(10 ** (n_digits - 1), 10**n_digits))
        letter = self.random.choice("ABCDEFGHKLMNPRSTW")
        return self.random.choices(
            (digits, f"#{digits}", f"LH-{digits}", f"{letter}-{digits}", f"{letter}{digits}"), (45, 15, 18, 10, 12)
        )[0]

    def product(self) -> tuple[str, str, bool, list[str]]:
        """(name as in the mail, name without color and size, whether it is plural, possible flaws)."""
        kinds = self.fragments["products"]
        kind = kinds[
            self.draw(
                "kind", ["textile"] * 5 + ["wood"] * 5 + ["clay"] * 4 + ["jewelry", "paper_leather"] * 2 + ["other"] * 2
            )
        ]
        form = self.random.random()
        if form < 0.2:
            name = self.draw(f"single{id(kind)}", kind["single"])
        else:
            name = self.draw(f"thing{id(kind)}", kind["things"])
            if form < 0.75:
                name = f"{self.draw(f'style{id(kind)}', kind['styles'])} {name}"
        plural = name.endswith("*")
        name = name.rstrip("*")
        shown = name
        if len(name.split()) < 3 and self.random.random() < 0.3:
            shown = f"{self.draw('color', self.fragments['colors'] + self.fragments['sizes'])} {name}"
        return shown, name, plural, kind["flaws"]

    def slots(self, product: str, plural: bool, flaws: list[str], own: str) -> dict[str, str]:
        """Values of the slots, except those with the order number."""
        listed = self.fragments
        one = ("an " if product[0] in "aeiou" else "a ") + product
        # No other person in the mail has the customer's name.
        people = [name for name in listed["people"] if own.split()[0] not in name]
        agreeing = (
            ("they", "them", "are", "were", "have", "do", "these", "")
            if plural
            else ("it", "it", "is", "was", "has", "does", "this", "s")
        )
        values = dict(zip(("it", "them", "is", "was", "has", "does", "this", "s"), agreeing, strict=True))
        date = f"{self.random.randint(1, 28)} {self.random.choice(listed['months'])}"
        if self.random.random() < 0.4:
            month, day = date.split()[1], date.split()[0]
            date = f"{month} {day}"
        return values | {
            "me": own,
            "other": self.draw(
                "other",
                [
                    thing
                    for kind in listed["products"].values()
                    for thing in kind["things"]
                    if "*" not in thing and thing[0] not in "aeiou"
                ],
            ),
            "p": product,
            "p_plural": product if plural else f"{product}s",
            "a": self.random.choice((f"some {product}", f"your {product}", f"two {product}")) if plural else one,
            "It": values["it"].capitalize(),
            "is_cap": values["is"].capitalize(),
            "does_cap": values["does"].capitalize(),
            "flaw": self.random.choice(flaws),
            "place": self.draw("place", listed["places"]),
            "person": self.draw("person", people),
            "occasion": self.draw("occasion", listed["occasions"]),
            "days": self.random.choice(
                ("8", "9", "eleven", "12", "twelve", "13", "fifteen", "16", "18", "20", "almost twenty", "more than 10")
            ),
            "date": date,
            "color": self.draw("own_color", listed["colors"]),
            "size": self.draw("own_size", listed["custom_sizes"]),
            "text": self.draw("own_text", listed["custom_texts"]),
        }

    def topics(self) -> list[str]:
        """One to three topics."""
        names = list(self.fragments["topics"])
        count = self.random.choices(list(TOPIC_COUNTS), list(TOPIC_COUNTS.values()))[0]
        # The complaints are drawn more often than each of the questions.
        deck = [name for name in names for _ in range(1 if name.startswith("question") else 2)]
        topics: list[str] = []
        while len(topics) < count:
            topic = self.draw("topic", deck)
            if not any({topic, other} in EXCLUSIVE or topic == other for other in topics):
                topics.append(topic)
        if self.random.random() < 0.6 or "late" in topics:  # a complaint usually comes first
            topics.sort(key=lambda topic: topic.startswith("question"))
        return sorted(topics, key=lambda topic: topic == "return") if "late" in topics else topics

    def record(self) -> Record:
        """A mail with its reply."""
        listed, chance = self.fragments, self.random.random
        customer, topics = self.customer(), self.topics()
        shown, name, plural, flaws = self.product()
        complaint = any(not topic.startswith("question") for topic in topics)
        bought = complaint or "question:care" in topics or "question:gift" in topics
        order = self.order() if bought and chance() < (0.78 if complaint else 0.4) else None
        slots = self.slots(shown, plural, flaws, customer)
        first = self.draw(f"first {topics[0]}", listed["topics"][topics[0]]["first"])
        inline = order is not None and "{P}" in first and chance() < 0.45
        inlined = self.draw("inline", listed["order_inline"]) if inline else "{p}"
        slots["fine"] = "no" if {"late", "damage"} & set(topics) else "yes"
        with_order = inlined.format(p=shown, o=order.lstrip("#") if order and "#" in inlined else order)
        sentences = [fill(first, slots | {"P": with_order})]
        for topic in topics[1:]:
            following = fill(self.draw(f"next {topic}", listed["topics"][topic]["next"]), slots | {"P": shown})
            sentences.append(connected(self.draw("connector", listed["connectors"]), following))
        for _ in range(self.random.choices((0, 1, 2, 3), TALK[len(topics)])[0]):
            kind = self.random.choice(("before", "before", "after", "fine") if order else ("before",))
            kind = "after" if kind == "fine" and slots["fine"] == "no" else kind
            said = fill(self.draw(kind, listed["small_talk"][kind]), slots)
            # What has no topic doesn't come between a product and a pronoun for it, except at a distance.
            sentences.insert(self.random.choice((0, len(sentences))), said)
        if order and not inline:
            if chance() < 0.5:
                sentences.insert(0, self.draw("order first", listed["order_first"]).format(o=order))
            else:
                sentences.append(self.draw("order last", listed["order_last"]).format(o=order))
        if inline and "#" in inlined:
            order = "#" + order.lstrip("#") if order else None
        mail = self.laid_out(customer, sentences)
        text = usual_text(shown, order, topics, plural)
        return as_record(mail, text, customer, order, name, topics)

    def laid_out(self, customer: str, sentences: list[str]) -> str:
        """The mail with its greeting, paragraphs, and signature."""
        greeting = self.draw("greeting", self.fragments["greetings"])
        ending = self.draw("ending", self.fragments["endings"])
        text = sentences[0]
        for sentence in sentences[1:]:
            text += self.random.choices((" ", "\n", "\n\n"), (85, 9, 6))[0] + sentence
        style = self.random.random()
        if style < 0.08:
            text = text.lower() if not re.search(r"[A-Z]-?\d", text) else text
        gap = self.random.choice(("\n", "\n\n"))
        sign = (
            self.random.choices(
                (f"{ending},\n{customer}", f"{ending}\n{customer}", f"{ending}, {customer}", f"{ending}!\n{customer}"),
                (5, 2, 2, 1),
            )[0]
            if ending
            else self.random.choice((customer, f"- {customer}"))
        )
        return (f"{greeting}{gap}" if greeting else "") + text + gap + sign


def fill(fragment: str, slots: dict[str, str]) -> str:
    """The fragment with its slots filled, and a capital letter at its beginning."""
    text = re.sub(r",(?=[?.!:,])", "", fragment.format(**slots))
    return text[0].upper() + text[1:]


def connected(connector: str, sentence: str) -> str:
    """The sentence after "Also, " and the like."""
    if connector and sentence.startswith("And "):
        sentence = sentence[4].upper() + sentence[5:]
    if not connector or connector.endswith(": "):
        return connector + sentence
    keeps = sentence.startswith(("I ", "I'", "If it's I")) or not sentence[1].islower()
    return connector + (sentence if keeps else sentence[0].lower() + sentence[1:])


def trigrams(text: str) -> set[tuple[str, ...]]:
    """The runs of three words of a text."""
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def faults_of(record: Record) -> list[str]:
    """What is wrong with a record."""
    points = check(record, record["messages"][-1]["content"])
    return problems(record) + [point for point, passed in points.items() if not passed]


def make(n_records: int, seed: int) -> list[Record]:
    """All records, in random order."""
    random_ = random.Random(seed)
    records = handwritten(FOLDER / "handwritten.txt")
    for record in records:
        if faults := faults_of(record):
            raise ValueError(f"{record['customer']}: {faults}")
    writer = MailWriter(yaml.safe_load((FOLDER / "fragments.yaml").read_text(encoding="utf-8")), random_)
    seen = [trigrams(record["messages"][0]["content"]) for record in records]
    while len(records) < n_records:
        record = writer.record()
        mail = record["messages"][0]["content"]
        runs = trigrams(mail)
        new = all(len(runs & other) < 0.5 * min(len(runs), len(other)) for other in seen)
        if MAIL_WORDS[0] <= len(mail.split()) <= MAIL_WORDS[1] and new and not faults_of(record):
            records.append(record)
            seen.append(runs)
    random_.shuffle(records)
    return records


def main() -> None:
    """Write the file, and print what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--seed", type=int, default=21)
    options = parser.parse_args()
    records = make(options.records, options.seed)
    with open(FOLDER / "train.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    print(len(records), "records;", Counter(len(record["topics"]) for record in records), "by number of topics")
    print(Counter(topic for record in records for topic in record["topics"]))


if __name__ == "__main__":
    main()
