"""The fuzz harness notices what it is made for: wrong results, other exceptions, crashes, hangs, and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CASES = {
    # What the command does with the damaged file, whether there is a naive reader -> the verdict
    ("pass", True): "naive-equal",
    ("pass", False): "fault: another result",
    ("raise UserError('a.txt is damaged; use another file.')", False): "refused: a.txt is damaged",
    ("raise UserError('x' * 1001)", False): "fault: not one short sentence",
    ("raise UserError('two\\nlines')", False): "fault: not one short sentence",
    ("raise KeyError('one')", False): "fault: Traceback",
    ("sys.exit(3)", False): "fault: Traceback",
    ("os.abort()", False): "fault: the process ended: signal 6",
    ("os._exit(0)", False): "fault: the process ended: signal 0",
    ("[None for _ in range(10**10)]", False): "fault: ",
    ("time.sleep(100)", False): "fault: no result within",
    ("data = bytearray(300 * 2**20)", False): "fault: ",
}
CODE = """
import json, os, sys, time
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from fuzz import sandbox
from fuzz.oracle import Target, campaign
from mini_chat_gpt.common.errors import UserError
sandbox.SECONDS, sandbox.WALL_SECONDS, sandbox.MEGABYTES = 0.5, 10.0, 200
fixture = Path(sys.argv[3])
fixture.mkdir()
(fixture / "a.txt").write_text("one")

def read():
    return Path("a.txt").read_text()

def act(what):
    if read() != "one":
        exec(what)
    return read()

change = {".txt": (lambda data, rng: (b"two", "two"),)}
for what, naive in json.loads(sys.argv[4]):
    target = Target("target", fixture, ["a.txt"], lambda: act(what), read if naive else None, changes=change)
    for _, verdict in campaign([target], "test", 1, 0):
        print(json.dumps(f"{verdict.verdict}: {verdict.detail}"))
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[tuple[str, bool], str]:
    """The verdict of a mutant of each case."""
    arguments = [str(ROOT / "tests"), str(ROOT), str(tmp_path_factory.mktemp("fuzz") / "fixture"), json.dumps([*CASES])]
    command = [sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(CASES), done.stdout + done.stderr
    return dict(zip(CASES, lines, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_tells_faults_from_right_behavior(verdicts, case):
    assert verdicts[case].startswith(CASES[case])
