"""`inspect` shows what a run trains on: the same batches, marks and counts. Its HTML page escapes all data."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import one_sentence, run
from tiny import TEXTS, tiny_config, tiny_model, tiny_tokenizer

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.cli import dispatch
from mini_chat_gpt.cli_options import data_kinds, split_arguments, with_files
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.data.batch_dump import read_examples
from mini_chat_gpt.data.token_counts import Row, total_of
from mini_chat_gpt.diagnostics import inspect_data
from mini_chat_gpt.diagnostics.inspect_data import count_tokens, inspect
from mini_chat_gpt.diagnostics.inspect_page import page
from mini_chat_gpt.diagnostics.inspect_text import marked
from mini_chat_gpt.diagnostics.inspection import Section, histogram
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.training.run_tokenizer import tokenizer_for
from mini_chat_gpt.training.sft_data import make_examples

TOKENIZER = tiny_tokenizer()
EVIL = "<script>alert('&')</script> <|user|>\x1b[31m"


def pair(number: int) -> tuple[str, str]:
    return f"Where is cat {number}?", f"Cat {number} is with Tom, who had a red ball. 😀"


def write_chats(path: Path, *pairs: tuple[str, str]) -> str:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in pairs]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def chats(tmp_path) -> str:
    return write_chats(tmp_path / "cats.jsonl", *map(pair, range(30)))


def inspection_of(*files: str, tokenizer=TOKENIZER, context: int = 200, steps: int = 1, n: int = 3, **sections):
    sections = {"chats": {"files": list(files)}} | sections if files else sections
    return inspect(tiny_config(**sections), tokenizer, context, steps, n)


def section(inspection, title: str) -> Section:
    return next(section for section in inspection.sections if section.title == title)


def shown_in(inspection):
    return section(inspection, "Examples").examples


def micro_batches_in(inspection) -> list[tuple[str, ...]]:
    """Step, number, examples, tokens and trained tokens of each micro-batch."""
    form = r"micro-batch (\d+): (\d+) examples?, ([\d,]+) tokens, ([\d,]+) trained \(\d+%\)"
    return [
        (int(step.title.removeprefix("Step ")), *(int(n.replace(",", "")) for n in re.fullmatch(form, note).groups()))
        for step in inspection.sections
        if step.title.startswith("Step ")
        for note in step.notes
    ]


def rows_of(*files: str, context: int = 200, **sections) -> tuple[list[Row], list[str]]:
    sections = {"chats": {"files": list(files)}} | sections if files else sections
    config = tiny_config(**sections)
    return count_tokens(make_examples(config, TOKENIZER, context), config)


def counts_in(bars) -> list[int]:
    return [int(count.replace(",", "")) for _, count, _ in bars[1:]]


class Marks(HTMLParser):
    """A page as a browser parses it: the tags, and for each article the trained text, all text and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.articles: list[dict[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag != "meta":
            self.open.append(tag)
        if tag == "article":
            self.articles.append({"b": "", "i": "", "all": "", "ids": ""})
        elif tag in "bi" and self.articles:
            self.articles[-1]["ids"] += dict(attributes)["title"] + " "

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("b", "i") and self.articles:
            self.articles[-1][self.open[-1]] += data
            self.articles[-1]["all"] += data


# ---- the command line


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a base model, chats, and stories."""
    folder = tmp_path_factory.mktemp("home")
    save_checkpoint(folder / "runs" / "base", tiny_model(TOKENIZER.vocab_size), TOKENIZER, {"job": "pretrain"})
    write_chats(folder / "cats.jsonl", *map(pair, range(30)))
    write_chats(folder / "long.jsonl", ("Hi?", "Hello!"), ("Hi " * 80, "No."), ("Bye?", "Bye!"))
    for name in ("tales", "fables"):
        (folder / name).mkdir()
        (folder / name / "TinyStoriesInstruct-train.txt").write_text("Story:\nOne.<|endoftext|>")
    (folder / "void").mkdir()
    (folder / "bad.jsonl").write_text('{"question": "Hi?", "answer": "Yes."}\n{"question": 1}\nno\n' * 2)
    return folder


def test_the_verb_shows_chats_in_a_pipe(home):
    printed = run(home, "inspect", "cats.jsonl", "training.batch_size=5", "--n", "2")
    assert "Tokenizer and context: those of runs/base." in printed
    assert re.search(r"Step 1\nmicro-batch 1: 5 examples, [\d,]+ tokens, [\d,]+ trained \(\d\d%\)\n", printed)
    shown = re.findall(r"---- cats: \d+ tokens, \d+ trained, weight 1; cats.jsonl, line (\d+)\n(.*)", printed)
    assert len(shown) == 2
    for line, text in shown:
        question, answer = pair(int(line) - 1)
        assert text == f"<|user|>{question}<|assistant|>[[{answer}<|endoftext|>]]"
    assert re.search(r"\ncats.jsonl +27 +100.0% ", printed)
    assert "\n64 tokens fit (context).\n" in printed
    assert printed.endswith("Validation\n3 examples: cats 3\n")


def test_sections_are_printed_in_order(home):
    printed = run(home, "inspect", "long.jsonl", "chats.valid_share=0")
    heads = ["Step 1", "By source and kind", "Lengths in tokens", "Left out, shortened or repeated", "Validation"]
    assert [line for line in printed.splitlines() if line in heads] == heads
    assert (
        "long.jsonl: 33 % of the chats to train on (1 of 3) are longer than 64 tokens and are dropped; 33 %" in printed
    )
    assert "\n  line 2: it has" in printed
    assert "No chat is held out" in printed


def test_the_verb_writes_a_page_of_more_examples(home):
    printed = run(
        home,
        "inspect",
        str(home / "cats.jsonl"),
        f"sft.pretrained_checkpoint={home}/runs/base",
        "--html",
        "a/page.html",
    )
    assert "Wrote a/page.html." in printed
    assert printed.count("---- cats") == 3
    text = (home / "a" / "page.html").read_text(encoding="utf-8")
    assert len(Marks(text).articles) == 28  # whole steps, up to all there are
    assert str(home) not in text
    assert "cats.jsonl, line" in text
    assert "those of base." in text
    assert "http" not in text.replace("http-equiv", "")


def test_bad_records_are_listed_or_skipped_and_counted(home):
    for name in ("chats.jsonl.txt", "chats.txt"):  # the name says stories
        (home / name).write_bytes((home / "cats.jsonl").read_bytes())
        assert f"{name}, line " in run(home, "inspect", name)
    printed = run(home, "inspect", "bad.jsonl", code=2)
    assert "4 records can't be used" in printed
    assert "bad.jsonl: 2 records (lines 3, 6): it is not valid JSON" in printed
    printed = run(home, "inspect", "bad.jsonl", "--skip-bad")
    assert 'bad.jsonl: records skipped: 4\n  2 records (lines 2, 5): it has "question" but no' in printed
    assert "  2 records (lines 3, 6): it is not valid JSON" in printed
    assert "Chats with the same text as another one: 1" in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing.jsonl"], "There is no nothing.jsonl; give chat files"),
        (["cats.jsonl", "training.batch_sise=3"], "did you mean 'batch_size'"),
        (["cats.jsonl", "--n", "-1"], "--n is -1; it must be 0 or more."),
        (["cats.jsonl", "--steps", "0"], "--steps is 0; it must be 1 or more."),
        (
            ["cats.jsonl", "tales"],
            "tales needs a share of the examples in addition to the chats; for example chats.stories=0.3.",
        ),
        (["tales", "fables"], "tales and fables both hold stories; give one of them."),
        (["void"], "void has no files of chats or text"),
        (["cats.jsonl", "sft.pretrained_checkpoint=nothing"], "no checkpoint at nothing"),
        (["cats.jsonl", "--tokenizer", "bad.jsonl"], "bad.jsonl is not a tokenizer"),
        (["cats.jsonl", "--html", "runs"], "runs is a folder"),
        (["cats.jsonl", "data.seq_len=16"], "No conversation of cats.jsonl is left"),
        (["--config", "nothing.yaml"], "no config file nothing.yaml"),
    ],
)
def test_a_user_error_is_one_sentence(home, words, says):
    assert says in one_sentence(run(home, "inspect", *words, code=2))


def test_stories_are_shown_from_the_folder_named(home, sample):
    printed = run(
        home, "inspect", str(sample), "data.prefix_branches=2", "--tokenizer", "runs/base", "data.seq_len=400"
    )
    assert printed.count("---- ") == 3
    assert printed.count("<|assistant|>[[") >= 3
    assert re.search(r"\n  summary +\d+ ", printed)
    assert "sample of" not in printed  # there are so few that all were counted
    assert "Tokenizer: base (--tokenizer); the context is data.seq_len." in printed


def test_without_a_base_model_a_tokenizer_is_trained_on_the_texts(tmp_path, chats):
    printed = run(tmp_path, "inspect", "cats.jsonl", "--n", "1")
    (entries,) = re.findall(r"There is no base model under runs/: a tokenizer with (\d+) entries was trained", printed)
    assert 260 < int(entries) < 400
    assert printed.count("[[Cat ") == 1


# ---- text to pretrain on


def test_text_is_shown_as_pretraining_reads_it(home):
    (home / "pages").mkdir()
    for n in range(3):
        (home / "pages" / f"{n}.md").write_text(f"# Page {n}\n\n{TEXTS[0]}\n")
    (home / "pages" / "picture.png").touch()
    printed = run(home, "inspect", "pages", "pretrain.tokenizer_vocab_size=300", "data.seq_len=32", "--n", "2")
    assert "pages: 3 documents (one for each file); the last tenth of each is held out for validation" in printed
    assert "pages: trained on: 0.md, 1.md, 2.md; not used: picture.png." in printed
    assert "The held-out text, 3 pieces, begins with: " in printed
    assert printed.count("---- text: ") == 2
    assert re.search(r"\n3 files\W+text +\d+ +100.0% ", printed)
    assert re.search(r"\n3 examples: text 3", printed)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.txt", "A novel.", "text"),
        ("x.txt", "One<|endoftext|>Two", "text"),
        ("x.txt", "Words: a\nStory:\nOne.<|endoftext|>", "stories"),
        ("x-train.txt", "One<|endoftext|>Two", "stories"),  # its pair is there
        ("x.txt", '{"messages": []}', "chats"),
        ("x.md", "[Illustration] {", "text"),
        ("x.jsonl.gz", "", "chats"),
        ("x", "A novel.", "chats"),  # whose reader says that it is text
        ("d/x.md", "A page.", "text"),
        ("d/x.csv", "question,answer", "chats"),
        ("d/TinyStoriesInstruct-train.txt", "Story: x", "stories"),
    ],
)
def test_the_kind_of_data_is_that_of_the_content(tmp_path, monkeypatch, name, content, kind):
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path(name).write_text(content)
    Path("x-valid.txt").write_text("Three")
    path = "d" if name.startswith("d/") else name
    assert data_kinds([path]) == {path: kind}


def test_text_and_chats_are_not_inspected_together(tmp_path, chats):
    (tmp_path / "novel.txt").write_text("A novel.")
    with pytest.raises(
        UserError, match=r"novel.txt is text to pretrain on, and .*cats.jsonl isn't; inspect one of them"
    ):
        with_files(tiny_config(), data_kinds([chats, str(tmp_path / "novel.txt")]))


# ---- arguments


def test_settings_are_distinguished_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data.v2=final.jsonl").touch()
    words = ["a.jsonl", "data.seq_len=16", "b=c.json", "data.v2=final.jsonl", "sft.prompts=[a.b]", "dir/x.y=z"]
    overrides, files = split_arguments(words)
    assert overrides == ["data.seq_len=16", "sft.prompts=[a.b]"]
    assert files == ["a.jsonl", "b=c.json", "data.v2=final.jsonl", "dir/x.y=z"]


def test_files_named_replace_those_of_the_config(tmp_path, chats):
    stories = tmp_path / "x-train.txt"
    stories.write_text("Words: a\nStory:\nOne.\n<|endoftext|>\n")
    config = tiny_config(chats={"files": {chats: 2, "other.jsonl": 1}, "valid_files": ["held.jsonl"], "stories": 0.2})
    assert with_files(config, {}) == config
    named = with_files(config, data_kinds([chats]))
    assert (named.chats.files, named.chats.valid_files) == ({chats: 2.0}, {})
    assert with_files(config, data_kinds([chats]), ["chats.valid_files=held.jsonl"]).chats.valid_files == {
        "held.jsonl": 1.0
    }
    both = with_files(config, data_kinds([chats, str(stories)]))
    assert (both.chats.files, both.sft.dataset_path, both.chats.stories) == ({chats: 2.0}, str(stories), 0.2)
    only = with_files(config, data_kinds([str(stories)]))
    assert (only.chats.files, only.sft.dataset_path) == ({}, str(stories))


def test_the_tokenizer_is_that_of_the_base(tmp_path, chats):
    base = save_checkpoint(tmp_path / "b", tiny_model(TOKENIZER.vocab_size, context_length=48), TOKENIZER)
    config = tiny_config(sft={"pretrained_checkpoint": str(base)}, chats={"files": [chats]}, data={"seq_len": 32})
    tokenizer, context, _ = tokenizer_for(config)
    assert (tokenizer.fingerprint(), context) == (TOKENIZER.fingerprint(), 48)
    _, context, note = tokenizer_for(config, str(base))
    assert (context, note) == (32, "Tokenizer: b (--tokenizer); the context is data.seq_len.")


# ---- the shown examples are those of a run


def test_the_first_steps_are_those_of_a_run(tmp_path, chats, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "base", tiny_model(TOKENIZER.vocab_size, context_length=128), TOKENIZER)
    config = tiny_config(
        sft={"pretrained_checkpoint": "base", "max_steps": 1, "save_dir": "run", "tokens_per_step": 300},
        chats={"files": [chats]},
        training={"batch_size": 3, "batch_tokens": 150},
    )
    train(config)
    real = read_examples(Path("run/first_batch.txt").read_text(encoding="utf-8"))
    seen = inspect(config, TOKENIZER, 128, n=len(real))
    assert sorted(e.ids.tolist() for e in real) == sorted(s.example.ids.tolist() for s in shown_in(seen))
    _, _, examples, tokens, trained = zip(*micro_batches_in(seen), strict=True)
    assert sum(tokens) == sum(len(e.ids) for e in real) >= 300
    assert sum(trained) == sum(e.n_trained for e in real)
    assert max(examples) <= 3


def test_examples_are_assigned_to_their_micro_batch(chats):
    seen = inspection_of(chats, steps=2, n=100, training={"batch_size": 4, "examples_per_step": 10})
    batches = micro_batches_in(seen)
    assert [batch[:3] for batch in batches] == [
        (step, number, size) for step in (1, 2) for number, size in ((1, 4), (2, 4), (3, 2))
    ]
    for step, number, _, tokens, trained in batches:
        examples = [s.example for s in shown_in(seen) if s.batch == f"step {step}, micro-batch {number}"]
        assert sum(len(example.ids) for example in examples) == tokens
        assert sum(example.n_trained for example in examples) == trained


def test_each_example_names_its_file_and_line(tmp_path, chats):
    more = write_chats(tmp_path / "dogs.jsonl", *((f"Dog {n}?", f"Woof {n}!") for n in range(10)))
    for shown in shown_in(inspection_of(chats, more, n=60)):
        path, line = shown.title.split("; ")[1].rsplit(", line ", 1)
        record = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1])
        assert record["question"] in TOKENIZER.decode(shown.example.ids.tolist())


def test_marks_are_those_of_render(tmp_path):
    answer = f"{EVIL}\n\n tabs\there,  “日本語” 👍🏽 é\n"
    seen = inspection_of(
        write_chats(tmp_path / "one.jsonl", (EVIL, answer)),
        chats={"files": [str(tmp_path / "one.jsonl")], "valid_share": 0},
        context=400,
    )
    ids, trained = render([Message("user", EVIL), Message("assistant", answer)], TOKENIZER)
    pieces = shown_in(seen)[0].pieces
    assert [token for piece in pieces for token in piece.ids] == ids
    assert [piece.is_target for piece in pieces for _ in piece.ids] == trained
    assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(ids, control=True)
    plain = marked(pieces, color=False).plain
    spelled = [text.replace("\x1b", "\\x1b") for text in (EVIL, answer)]
    assert plain == f"<|user|>{spelled[0]}<|assistant|>[[{spelled[1]}<|endoftext|>]]"
    green = marked(pieces, color=True)
    assert (
        "".join(green.plain[s.start : s.end] for s in green.spans if s.style == "bold green underline")
        == f"{spelled[1]}<|endoftext|>"
    )


def test_a_prompt_weight_leaves_only_the_replies_marked_and_is_reported(chats):
    plain, weighted = inspection_of(chats), inspection_of(chats, data={"prompt_weight": 0.25, "num_workers": 0})
    for one, other in zip(shown_in(plain), shown_in(weighted), strict=True):
        assert one.example.loss_mask.tolist() == other.example.loss_mask.tolist()
    assert any("data.prompt_weight is 0.25: unmarked tokens are trained as well" in line for line in weighted.about)


# ---- counts


def test_every_chat_is_counted_and_weights_repeat_them(tmp_path, chats):
    more = write_chats(tmp_path / "dogs.jsonl", *((f"Dog {n}?", f"Woof {n}!") for n in range(10)))
    rows, estimates = rows_of(chats={"files": {chats: 2, more: 1}, "valid_share": 0})
    assert [(row.source, row.kind, row.examples) for row in rows] == [
        ("cats.jsonl × 2", "cats", 60),
        ("dogs.jsonl", "dogs", 10),
    ]
    cats = [render([Message("user", q), Message("assistant", a)], TOKENIZER) for q, a in map(pair, range(30))]
    tokens, trained, _ = rows[0].repeats @ rows[0].sizes
    assert tokens == 2 * sum(len(ids) for ids, _ in cats)
    assert trained == 2 * sum(sum(trained) for _, trained in cats)
    assert total_of(rows).examples == sum(counts_in(histogram(total_of(rows), {}))) == 70
    assert not estimates


def test_stories_are_a_sample_of_the_stream(sample, monkeypatch):
    monkeypatch.setattr(inspect_data, "SAMPLE", 10)
    seen = inspection_of(sft={"dataset_path": str(sample)}, context=400)
    (heads, (source, *_), *kinds), estimates = section(seen, "By source and kind").table, seen.sections[2].notes
    assert (heads[1], source) == ("examples", "TinyStoriesInstruct-train.txt")
    assert all(row[1].startswith("~") for row in kinds)
    assert kinds[-1][:2] == ["all", "~20"]
    assert sum(counts_in(section(seen, "Lengths in tokens").table)) == 20
    assert "estimated from a sample of 10 of its 20 records." in estimates[0]


def test_stories_in_addition_to_chats_have_their_share(sample, chats):
    seen = inspection_of(sft={"dataset_path": str(sample)}, chats={"files": [chats], "stories": 0.25}, context=400)
    shares = {name: share for name, _, share, *_ in section(seen, "By source and kind").table[1:]}
    assert shares.pop("cats.jsonl") == "75.0%"
    assert shares.pop("all") == "100.0%"
    assert sum(float(share.rstrip("%")) for share in shares.values() if share) == pytest.approx(25, abs=0.5)
    assert sum(counts_in(section(seen, "Lengths in tokens").table)) == 36
    (validation,) = section(seen, "Validation").notes
    assert int(validation.split()[0]) > 20
    assert "cats 3" in validation


def test_curriculum_stages_have_their_own_rows(sample):
    stage = {"share": 0.3, "mixture": {"copyedit": 1000}, "tokens_per_step": 100, "prompt_weight": 0.5}
    seen = inspection_of(sft={"dataset_path": str(sample)}, data={"curriculum": [stage], "num_workers": 0}, context=400)
    rows = section(seen, "By source and kind").table
    (total,) = (number for number, row in enumerate(rows) if row[:2] == ["all", "20"])
    assert rows[total + 1] == ["stage 1"] + [""] * 6
    assert rows[total + 2][:2] == ["  copyedit", ""]
    assert sum(float(row[2].rstrip("%")) for row in rows[total + 2 :]) == pytest.approx(100, abs=0.5)
    assert micro_batches_in(seen)[0][3] >= 100
    assert {shown.example.kind for shown in shown_in(seen)} == {"copyedit"}
    assert "The first steps are those of stage 1 of data.curriculum." in seen.about
    assert any("data.prompt_weight is 0.5" in line for line in seen.about)


def test_shortened_stories_are_counted(sample):
    seen = inspection_of(sft={"dataset_path": str(sample)}, context=200)
    left_out = section(seen, "Left out, shortened or repeated").notes
    assert any(re.search(r"of \d+ examples whose story lost text from its middle", note) for note in left_out)
    rows, _ = rows_of(sft={"dataset_path": str(sample)}, context=200)
    assert total_of(rows).quantile(1.0) <= 200


def row_of(lengths, repeats) -> Row:
    sizes = np.stack([lengths, lengths, lengths], axis=1)
    return Row("cats", "cats", sizes, np.array(repeats, dtype=float))


def test_a_histogram_counts_every_example_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(2, rng.integers(3, 3000), rng.integers(1, 400))
        row = row_of(lengths, np.ones(len(lengths)))
        assert row.quantile(1.0) == lengths.max()
        assert row.quantile(0.5) == np.sort(lengths)[(len(lengths) - 1) // 2]
        marks = {"median": row.quantile(0.5), "longest": row.quantile(1.0)}
        _, *bars = histogram(row, marks)
        assert 1 <= len(bars) <= 12
        assert max(bar.length for _, _, bar in bars) == 1
        for label, count, bar in bars:
            first, last = (int(number.replace(",", "")) for number in label.split("–"))
            assert int(count) == ((lengths >= first) & (lengths <= last)).sum()
            inside = [f"{name} {tokens:,}" for name, tokens in marks.items() if first <= tokens <= last]
            assert bar.label == ", ".join(inside)


def test_a_histogram_counts_repeated_examples_repeatedly():
    row = row_of(np.array([30, 10, 20]), [2, 0.5, 0.5])
    assert sum(counts_in(histogram(row, {}))) == 3
    assert row.quantile(0.5) == 30


# ---- the page


def test_a_page_shows_every_token_as_it_is_marked(tmp_path, chats):
    evil = write_chats(
        tmp_path / "<b>&.jsonl", (EVIL, f"Say {EVIL} to {TEXTS[2]}"), *((f"{EVIL}{n}", EVIL) for n in range(9))
    )
    seen = inspection_of(chats, evil, n=60)
    text = page(seen)
    marks = Marks(text)
    assert len(marks.articles) == len(shown_in(seen)) >= 36
    for article, shown in zip(marks.articles, shown_in(seen), strict=True):
        ids, trained = shown.example.ids, shown.example.loss_mask
        assert article["ids"].split() == [str(token) for token in ids.tolist()]
        for name, part in (("b", ids[trained]), ("i", ids[~trained]), ("all", ids)):
            assert article[name] == TOKENIZER.decode(part.tolist(), control=True).replace("\x1b", "\\x1b")


def test_a_page_holds_no_markup_of_the_data_and_loads_nothing(tmp_path):
    evil = write_chats(tmp_path / "<b>&'\".jsonl", *((f'"{EVIL}" {n}', EVIL) for n in range(9)))
    text = page(inspection_of(evil, n=9))
    assert "&lt;b&gt;&amp;&#x27;&quot;" in text
    marks = Marks(text)
    assert marks.articles[0]["all"].count("<script>alert('&')</script>") == 2
    assert marks.tags["script"] == 1
    assert not {"img", "link", "iframe", "a"} & set(marks.tags)
    assert not re.search(
        r"(src|href|url\(|@import|https?:)",
        text.replace("default-src", "").replace("style-src", "").replace("script-src", ""),
    )
    assert "\x1b" not in text


def test_a_page_names_files_without_their_folders(tmp_path, chats):
    Path(chats).write_text(Path(chats).read_text(encoding="utf-8") + '{"question": 3}\n', encoding="utf-8")
    text = page(inspection_of(chats={"files": [chats], "skip_bad": True}))
    assert str(tmp_path) not in text
    assert "cats.jsonl: records skipped: 1" in text
    assert "Data: cats.jsonl" in text


def test_a_page_has_a_button_for_each_kind(tmp_path, chats):
    """The script makes the buttons from the kinds of the articles."""
    more = write_chats(tmp_path / "dogs.jsonl", *((f"Dog {n}?", f"Woof {n}!") for n in range(30)))
    seen = inspection_of(chats, more, n=40)
    kinds = Counter(shown.example.kind for shown in shown_in(seen))
    text = page(seen)
    for kind, n in kinds.items():
        assert text.count(f'<article data-kind="{kind}">') == n
    assert text.count('<div class="filter"></div>') == 1
    assert "article.dataset.kind" in text


# ---- real chat files


@pytest.mark.parametrize(
    "name", ["gsm8k_test.jsonl", "rasbt_instruction-data.json", "fastchat_dummy_conversation.json"]
)
def test_real_chats(real_data, name):
    if not (path := real_data / "chat" / name).is_file():
        pytest.skip(f"there is no {name}")
    seen = inspection_of(str(path), context=512, n=20)
    marks = Marks(page(seen))
    assert [article["b"] for article in marks.articles] == [
        TOKENIZER.decode(s.example.ids[s.example.loss_mask].tolist(), control=True) for s in shown_in(seen)
    ]
    assert sum(counts_in(section(seen, "Lengths in tokens").table)) > 300
    assert all(f"; {path}, line " in shown.title or f"; {path}, record " in shown.title for shown in shown_in(seen))


def test_data_that_a_run_rejects_is_rejected_with_the_same_message(chats):
    with pytest.raises(UserError, match="No conversation of"):
        inspection_of(chats, context=8)


def test_a_page_never_replaces_a_pipe_or_a_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"):
        dispatch(["inspect", "--html", "pipe"])
    assert not Path("pipe").is_file()
