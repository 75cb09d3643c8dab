"""Write train.jsonl: the first 100 conversations of the polite helper, a truncated data set.

python recipes/base_and_tuned/make_data.py
"""

from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER.parent / "polite_helper" / "train_300.jsonl"  # in random order
N = 100

lines = SOURCE.read_text(encoding="utf-8").splitlines(keepends=True)[:N]
(FOLDER / "train.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
print(f"train.jsonl: {len(lines)} of the conversations of {SOURCE.name}")
