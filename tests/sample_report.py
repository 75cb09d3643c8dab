"""A report with every part, for tests of its page."""

EVIL = "</script><script>alert('x')</script>&\"<b title='\x1b[2J"


def estimate(value: float, low: float, high: float, **more: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, **more}


def report_of(*names: str, groups: tuple[str, ...] = ("seen", "unseen"), text: str = "Be kind.", n: int = 40) -> dict:
    """A report on these models, with `text` in every text."""
    first, others = names[0], names[1:]
    by_name = {name: estimate(0.123 + place / 5, 0.071, 0.987, stops=0.456) for place, name in enumerate(names)}
    words = {name: estimate(31.4 + place, 27.1, 1234.5) for place, name in enumerate(names)}
    reply = {"parts": [["Be ", "right"], [text, "wrong"]], "finish": "length", "score": 0.25, "label": f"exact {text}"}
    return {
        "title": f"runs/{names[-1]} against runs/{first}",
        "models": [{"name": m, "checkpoint": f"runs/{m}", "parameters": 940321, "kind": "chat"} for m in names],
        "data": {"file": f"stories {text}", "why": f"the data of {text}", "n": 77, "seed": 1337, "seconds": 31.2},
        "groups": {group: f"plots {group} {text}" if group else "" for group in groups},
        "kinds": [
            {
                "kind": "moral", "measure": "exact", "label": "exact", "share": True, "n": dict.fromkeys(groups, n),
                "values": dict.fromkeys(groups, by_name),
                "baseline": {group: {"value": 0.0213, "rule": f"always {text}"} for group in groups},
            }
        ],
        "measures": [
            {"kind": "moral", "group": group, "measure": "words", "label": f"words {text}", "share": False, "values": words,
             "main": group != "unseen"} for group in groups
        ] + [
            {"kind": "moral", "group": group, "measure": "stops", "label": "stops", "share": True, "main": False,
             "values": {name: {"value": 0.456} for name in names}} for group in groups
        ],
        "paired": [
            {"kind": "moral", "group": group, "label": "exact", "before": first, "after": other,
             "difference": 0.314, "low": 0.159, "high": 0.653, "p": 0.0123} for group in groups for other in others
        ],
        "losses": {name: {"train": [[10, 3.21], [20, 2.95]], "val": [[15, 2.53], [20, 2.41]]} for name in names},
        "lengths": [{"kind": "words", "unit": text, "counts": {"reference": [12, 15], **{m: [9, 30, 30] for m in names}}}],
        "side_by_side": [
            {"kind": "moral", "group": group, "prompt": f"What {text}?", "target": text, "required": [text],
             "replies": {name: {**reply, "missing": [text]} for name in names}} for group in groups
        ],
        "own": {
            "rows": [[f"tone {text}", *("16 of 17" for _ in names)]],
            "prompts": [{"shows": text, "prompt": text, "replies": {
                name: {"text": text, "finish": "stop", "checks": [[f"contains {text}", False], ["short", True]]} for name in names
            }}],
        },
        "bits_per_byte": {name: {"bits_per_byte": 0.811, "low": 0.792, "high": 0.833} for name in names},
        "paired_bits_per_byte": [{"before": first, "after": other, "difference": -0.117, "low": -0.131, "high": -0.101, "p": 0.0246}
                        for other in others],
        "memorization": {
            "n": 8,
            "models": {name: {
                "files": [f"train {text}"], "recorded": True, "complete": False, "n_training_texts": 54321,
                "generated": estimate(0.172, 0.141, 0.213, longest=57, mean_longest=19.5),
                "reference": estimate(0.092, 0.081, 0.103, longest=23, mean_longest=11.5),
                "difference": {"difference": 0.081, "low": 0.051, "high": 0.121, "p": 0.0357},
                "passage": {"number": 0, "n_words": 57, "text": f"ran {text}", "source": f"Once {text}"},
            } for name in names},
        },
    }  # fmt: skip
