"""Phrases that must not appear again: metaphors, private vocabulary, British spelling, and names that have been replaced.

Each entry is a regular expression with its replacement or the reason why it is banned. A match fails the test with its file
and line. `python tests/test_prose.py` prints the number of matches by file.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

STEMS = (
    "author|capital|categor|character|custom|emphas|factor|final|general|initial|local|material|maxim|memor|minim|normal|optim|organ|"
    "parallel|priorit|quant|random|real|recogn|regular|serial|special|standard|summar|synchron|token|util|vector|visual"
)
IZE = rf"\b(de|re|un)?({STEMS})is(e|es|ed|er|ers|ing|ation|ations)\b"

BRITISH = (
    r"\b(amongst|learnt|burnt|dreamt|spoilt|cheques?|enrol|instalments?|fulfil|practis(e|ed|ing)|(kilo|centi|milli)?metres?|litres?|fibres?|theatres?"
    r"|tyres?|ploughs?|moulds?|sceptic\w*|ageing|acknowledgements?|(ana|para|cata)lys(e|es|ed|ing)|(signal|total|level|fuel|channel|dial|initial"
    r"|marshal|counsel|quarrel)l(ed|ing)|focuss(ed|es|ing)|(flav|harb|lab|rum|hum|arm|endeav|od|vap|vig|sav|glam)our\w*)\b"
)

PHRASES = {
    r"^(<{7}|>{7}) ": "resolve the merge conflict",
    # Terms with a usual name
    r"\baccidents?\b": "non-finite step",
    r"\bguilty\b": "local_nonfinite; the rank or the example with a non-finite loss",
    r"\brehears\w*": "memory dry run",
    r"\bcontestants?\b": "implementations",
    r"\bend to end\b": "packed; concatenated into one row",
    r"\bby hand\b": "fused ops; written manually; labeled manually",
    r"\bwritten down plainly\b": "the plain formula",
    r"\btrivial (answer|reply|replies|rule)s?\b": "baseline",
    r"\bscoreboard\b": "results table",
    r"\blessons? of data\.curriculum\b|\blesson \d": "curriculum stage",
    r"\brecit(e|es|ed|ing|ation)\b": "memorization",
    r"\btwo-?fold row\b": "packed row",
    r"\bcontrol signs?\b": "control tokens",
    r"\blikeliest\b|\blikelier\b": "most probable, more probable",
    r"\bsurest\b": "most probable; greedy",
    r"\bcompany\b": "other rows of the batch; other ranks",
    # Constructions
    r"(?<!there )\b(is|are) no (?!longer\b|more\b|less\b|fewer\b|better\b|worse\b|way\b)\w+": "is not a …",
    r"\bgo(es)? on where\b": "resumes at",
    r"\bas a stranger\b|\bstranger's\b": "state what is compared",
    r"\bas it (comes|stands|lies)\b|\bas they (come|stand|lie)\b": "unchanged; in order",
    r"\bwhat (they|it) do(es)? together\b": "every rank must run the same number of forward passes",
    r"\bcome(s)? to lie\b": "is placed at",
    r"\bwhat came of\b": "the result",
    r"\bgives? back\b|\bgiven back\b": "returns",
    r"\bhand(s|ed)? (it|them) (on|out)\b": "returns; passes",
    r"\b(is|are|was|were) foreseen\b": "predicted",
    r"\breckon\w*": "count, estimate, compute",
    r"\bby turns\b": "interleaved, alternately",
    r"\bkept apart\b": "separate",
    r"\bin vain\b": "without effect",
    r"\bof (one's|its|their|his|her) own accord\b": "automatically",
    r"\bis (said|told) (before|at once|as)\b|\bare (said|told)\b": "is reported",
    r"\bthe whole way\b": "all stages",
    r"\bfor ever\b": "without end",
    r"\bthereby\b|\bwherein\b|\bthereof\b|\bwhence\b|\bhereby\b|\bthither\b": "archaic",
    r"\bto the (letter|character)\b": "exactly",
    r"\ba hair\b|\bmoods?\b of\b": "metaphor",
    r"\band (its|their) kin\b": "and the others",
    r"\bmet with\b": "occurs",
    r"\bhow .{1,30} (is|are) come by\b|\bcome by (one|it)\b": "how to get",
    r"\bthat speaks\b|\bspeaks (of|most)\b|\bspeak of\b": "mentions",
    r"\bnobody's\b": "state the fact",
    r"\b(take|takes|taken|took) apart\b": "split, parse",
    r"\bput(s)? in the place of\b|\bin the place of\b": "replaces; instead of",
    r"\bfor itself\b": "separately",
    # British spelling
    IZE: "-ize",
    r"\bbehaviours?\b|\bcolour\w*|\bneighbour\w*|\bfavour\w*|\bhonour\w*": "-or",
    r"\b(licence|defence|centre\w*|grey|labelled|labelling|cancelled|modelling|travell\w+|catalogue)\b": "American spelling",
    r"\b(judgement|artefact\w*|programme|whilst|spelt)\b": "American spelling",
}
"""Banned in all text of Python files and in the prose of Markdown and YAML files: phrase -> what to write instead."""

PROSE = {
    r"\bhouse\b": "package, repository, project",
    r"\bfloors?\b": "layer, level",
    r"\brooms\b": "modules, subpackages",
    r"\bstrangers?\b": "other code, other models",
    r"\b(lives?|dwells?) in\b": "is in, is defined in",
    r"\b(lies|lay|lain)\b|\blie (in|at|on|end|with)\b|\blying (in|on|at|down)\b": "is; concatenate",
    r"\btold\b(?! to\b)": "reported; distinguished",
    r"\bmine\b|\btheirs\b": "name the thing",
    r"\bdear\b": "expensive",
    r"\btravels? (over|between|along|with|to)\b": "is sent, is copied",
    r"\bnobody\b|\bsomebody\b": "no one; state the fact",
    r"\bcomes? of\b|\bcame of\b": "results from",
    r"\bso many\b": "n, this many",
    r"\bwhat .{1,40} is for\b": "the purpose",
    r"\bought to\b|\bshall\b": "must, should",
    r"\bstands? (in|at|on|there|beside|where|before|after|behind|by)\b|\bstood\b": "is in, is at",
    r"\bgo(es)? on\b|\bgoing on\b|\bwent on\b": "continues, resumes",
    r"\bheed\w*": "follows",
    r"\bbeside\b": "next to, in addition to, compared with",
    r"\bof one's own\b": "your own",
    r"\b(is|are|be) said\b|\bsay so\b": "is reported",
    r"\basked for\b": "requested, given",
    r"\b(is|are) meant\b": "is",
    r"\banew\b": "again",
    r"\bwish(es|ed)\b": "requested",
    r"\bholds? no\b": "has no",
    r"\bthere already\b": "already exists",
    # Spelling
    BRITISH: "American spelling",
    r"\bfine ?tun(e|es|ed|ing)\b": "fine-tune",
    r"\bpre-train\w*": "pretrain",
    r"\bmicro ?batch(es)?\b": "micro-batch",
    r"\brouge ?l\b": "ROUGE-L",
}
"""Banned in the prose only: comments, docstrings and Markdown. Story texts and identifiers may have these words."""

NAMES = {
    "Flat": "Packed",
    "FlatBatch": "PackedBatch",
    "InstructSource": "InstructDataset",
    "ConversationSource": "ChatDataset",
    "DocumentSource": "TextDataset",
    "ExampleSource": "ExampleDataset",
    "Lesson": "CurriculumStage",
    "Engine": "TrainStep",
    "goodness": "score",
    "standing": "rank_key",
    "best_by": "best_metric",
    "suite_tasks": "eval_tasks",
    "max_accidents": "max_nonfinite_steps",
    "deciding_tokens": "answer_tokens",
    "share_beginning": "share_prefix",
    "blocked_products": "blocked attention",
    "causal_products": "blocked attention",
    "core_share": "CPU contention",
    "decoding_form": "for_inference",
    "DecodingModel": "CPUInferenceModel",
    "LookupReader": "PromptLookupDecoder",
    "NEVER": "NEG_INF",
    "fit_task": "truncate_to_context",
    "Fitted": "RenderedTask",
    "behind_story": "as_follow_up",
    "asks_first": "question_first",
    "Chooser": "TemplateSampler",
    "trivial_replies": "baselines",
    "run_facts": "provenance",
    "run_place": "run_folder",
    "in_shards": "is_dtensor",
    "own_part": "local_shard",
    "put_in": "load_adapter",
    "put_back": "merge_rows",
    "set_aside": "move_aside",
    "sweep": "remove_partial",
    "orthogonalized": "orthogonalize",
    "first_on_each_machine": "local_rank_zero_first",
    "by_hand": "use_fused_cpu",
    "rehearsal": "dry_run",
    "loss_by": "losses by kind",
}
"""Identifiers that have been replaced: old name -> new name."""

EXEMPT = {
    "tests/test_prose.py": "the lists themselves",
    "CHANGELOG.md": "names old settings and modules",
    "benchmarks/RESULTS.md": "measurements with the names of their time",
    "mini_chat_gpt/prepare/sample_plots.py": "story texts",
    "tests/tinystories/test_word_forms.py": "word lists",
    "mini_chat_gpt/prepare/sample_stories.py": "story texts",
}
EXEMPT_FOLDERS = ("tests/old_runs/",)  # runs of an older version


def files() -> list[Path]:
    """The files that are checked."""
    folders = ("mini_chat_gpt", "docs", "recipes", "benchmarks", "tests", "TinyStories", "notebooks")
    paths = [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.yaml")]
    for folder in folders:
        paths += [path for suffix in ("py", "md", "yaml") for path in (ROOT / folder).rglob(f"*.{suffix}")]
    names = [(path, path.relative_to(ROOT).as_posix()) for path in paths]
    return [path for path, name in sorted(names) if name not in EXEMPT and not name.startswith(EXEMPT_FOLDERS)]


def prose_of(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of the comments and docstrings of a Python file, the comments of a YAML file, or a Markdown text."""
    if path.suffix == ".yaml":
        yield from ((number, line.partition("#")[2]) for number, line in enumerate(text.splitlines(), 1))
        return
    if path.suffix == ".md":
        # Code and quotations are not our prose.
        text = re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
        yield from (
            (number, re.sub(r"`[^`]*`|\"[^\"]*\"", "", line)) for number, line in enumerate(text.splitlines(), 1)
        )
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        # A docstring, or a string below a constant or field that describes it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from enumerate(node.value.value.splitlines(), node.lineno)


def identifiers_of(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line number, identifier) of a Python file."""
    # A quick look first: tokenizing every file would take most of the test's time.
    if path.suffix == ".py" and re.search(rf"\b({'|'.join(NAMES)})\b", text):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string


@lru_cache
def any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a lower-case line that one of the patterns matches. Their common beginning is tested once: ten times faster than in each."""
    words = [pattern.removeprefix(r"\b") for pattern in patterns if pattern.startswith(r"\b")]
    others = [pattern for pattern in patterns if not pattern.startswith(r"\b")]
    return re.compile("|".join([rf"\b(?:{'|'.join(words)})", *others]))


def findings(path: Path) -> Iterator[str]:
    """Every match in a file, as FILE:LINE: text -> replacement."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    prose = list(prose_of(path, text))
    whole = list(enumerate(text.splitlines(), 1)) if path.suffix == ".py" else prose
    # A line that reads a key of an older version is marked.
    whole = [(number, line) for number, line in whole if not line.endswith("# old name")]
    for patterns, lines in ((PHRASES, whole), (PROSE, prose)):
        any_of_them = any_of(tuple(patterns))
        for number, line in lines:
            if any_of_them.search(line.lower()):
                for pattern, replacement in patterns.items():
                    if match := re.search(pattern, line, re.IGNORECASE):
                        yield f"{name}:{number}: {match[0]!r} in {line.strip()[:120]!r} -> {replacement}"
    for number, identifier in identifiers_of(path, text):
        if identifier in NAMES:
            yield f"{name}:{number}: {identifier} -> {NAMES[identifier]}"


def test_banned_phrases_and_names_do_not_appear():
    found = [line for path in files() for line in findings(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.py", "# Two rows laid end to end\n", "end to end"),
        ("a.py", 'raise ValueError(f"{path} is no checkpoint")\n', "is no checkpoint"),
        ("a.py", 'story = "The house stood on a hill."\n', None),  # a string may be a story
        ("a.py", 'def f():\n    """The house stood on a hill."""\n', "house"),
        ("a.py", "Engine()\n", "Engine"),
        ("a.md", 'It prints "It is no file."\n\n```\nis no file\n```\n', None),
        ("a.md", "An optimised batch\n", "optimised"),
        ("a.py", "# It has learnt to copy over some metres\n", "learnt"),
        ("a.md", "Fine tuning on a micro batch\n", "Fine tuning"),
        ("a.yaml", "words: colour  # There is no other word\n", None),
        ("a.yaml", "words: red  # a colour\n", "colour"),
    ],
)
def test_matches(tmp_path, monkeypatch, name, text, found):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    matches = list(findings(tmp_path / name))
    assert found in matches[0] if found else matches == []


if __name__ == "__main__":
    found = [line for path in files() for line in findings(path)]
    if "--list" in sys.argv:
        print("\n".join(found))
    for name, n in Counter(line.split(":")[0] for line in found).most_common():
        print(f"{n:5} {name}")
    print(f"{len(found):5} in all")
