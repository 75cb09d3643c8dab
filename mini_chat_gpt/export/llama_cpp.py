"""Run an exported GGUF in a llama.cpp that is installed here, and compare its replies with ours.

llama.cpp is found as npm's node-llama-cpp, which brings it along: in node_modules of the working directory or a folder above it, or in
a folder that NODE_PATH names; without it, as the command llama-completion, which gives no logits (llama_completion.py). Nothing is
downloaded or built. llama.cpp rounds in places where we don't: keys and values to 16 bits, and what quantized matrices are multiplied
with to 8 bits.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mini_chat_gpt import assets
from mini_chat_gpt.common.files import scratch_folder
from mini_chat_gpt.common.json_files import JSONRecord, parse_json
from mini_chat_gpt.export.compare import Turn
from mini_chat_gpt.export.llama_completion import PROGRAM, compare_completions
from mini_chat_gpt.export.proof import MOST, Bound, Proof, ProofError
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

SECONDS = 600.0
ADDED = 0.02
"""Difference of logits by llama.cpp's own rounding, in addition to that of the type; see docs/export.md."""


class _TurnResult(JSONRecord):
    ids: list[int]
    greedy: list[int]
    logits: str


class _Result(JSONRecord):
    version: str
    turns: list[_TurnResult]


def find_node_llama_cpp() -> Path | None:
    """The index of npm's node-llama-cpp, None if it or node is not installed."""
    if shutil.which("node") is None:
        return None
    return next((path for path in _candidates() if path.is_file()), None)


def _candidates() -> Iterator[Path]:
    here = Path.cwd()
    folders = [folder / "node_modules" for folder in (here, *here.parents)]
    folders += [Path(name) for name in os.environ.get("NODE_PATH", "").split(os.pathsep) if name]
    for folder in folders:
        yield folder / "node-llama-cpp" / "dist" / "index.js"


def compare_with_llama_cpp(file: Path, proof: Proof, tokenizer: ChatTokenizer, bound: Bound) -> list[str]:
    """Lines about the replies of an installed llama.cpp; [] if there is none. Raises ProofError if they differ."""
    if not proof.turns:
        return []
    limit = min(MOST, bound.logits * proof.config.n_layer**0.5 + ADDED)
    index = find_node_llama_cpp()
    if index is None:
        if shutil.which(PROGRAM) is None:
            return []
        return [f"llama.cpp ({PROGRAM}): {compare_completions(file, proof, tokenizer, limit, _n_threads())}"]
    result = run_llama_cpp(index, file, proof, tokenizer)
    if isinstance(result, str):
        raise ProofError(f"llama.cpp (node-llama-cpp) can't run the file: {result}")
    return [f"llama.cpp (node-llama-cpp {result.version}): {_compared(result, proof, tokenizer, limit)}"]


def _n_threads() -> int:
    """Threads for llama.cpp, whose threads wait for each other by spinning."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def run_llama_cpp(index: Path, file: Path, proof: Proof, tokenizer: ChatTokenizer) -> _Result | str:
    """The ids, greedy replies and logits of llama.cpp for the turns of a proof, or the reason why there are none."""
    prompts = [{"text": turn.prompt_text, "prompt": turn.prompt, "reply": turn.reply} for turn in proof.turns]
    request: dict[str, Any] = {
        "model": str(file.resolve()),
        "prompts": prompts,
        "stops": sorted(tokenizer.stop_ids),
        "vocabulary": proof.config.vocab_size,
        "context": proof.config.context_length,
        "threads": _n_threads(),
    }
    with scratch_folder() as folder:
        script, asked, answered = folder / "run.mjs", folder / "request.json", folder / "result.json"
        script.write_text(assets.text("llama_cpp.mjs"), encoding="utf-8")
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = ["node", str(script), str(index), str(asked), str(answered)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"no answer within {SECONDS:.0f} seconds."
        if not answered.is_file():
            lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if "rror" in line]
            return (lines[0] if lines else f"exit code {done.returncode}")[:300]
        return parse_json(answered.read_bytes(), _Result, "the answer of llama.cpp", "use --no-check")


def _compared(result: _Result, proof: Proof, tokenizer: ChatTokenizer, limit: float) -> str:
    """Compare the turns. Raises ProofError for other ids of a prompt, and for logits that differ by more than `limit`."""
    squares = of_logits = 0.0
    parts: str | None = None
    n_ids = tokenizer.vocab_size
    for number, (theirs, turn, ours) in enumerate(zip(result.turns, proof.turns, proof.replies.logits, strict=True), 1):
        prompt = list(turn.prompt[turn.prompt[0] == tokenizer.bos_id :])
        if theirs.ids != prompt:
            pairs = enumerate(zip(theirs.ids, prompt, strict=False))
            at = next((i for i, pair in pairs if len({*pair}) > 1), min(len(theirs.ids), len(prompt)))
            raise ProofError(
                f"llama.cpp has other ids than ours for the prompt of turn {number}, from token {at + 1} on."
            )
        logits = np.frombuffer(base64.b64decode(theirs.logits), np.float32).reshape(len(turn.reply), -1)
        own, other = (one - one.mean(1, keepdims=True) for one in (ours[:, :n_ids], logits[:, :n_ids]))
        squares += float(np.square(own - other).sum())
        of_logits += float(np.square(own).sum())
        if parts is None:
            parts = _parting(theirs.greedy, turn, ours[:, :n_ids], number)
    difference = (squares / max(of_logits, 1e-30)) ** 0.5
    about = f"its logits along them differ by {difference:.2g} of their size (bound {limit:.2g})"
    if difference > limit:
        raise ProofError(
            f"in llama.cpp the logits differ by {difference:.2g} of their size; at most {limit:.2g} is possible by rounding."
        )
    if parts is None:
        return f"the same ids and the same greedy replies; {about}"
    return f"the same ids; the greedy replies part at {parts}; {about}"


def _parting(greedy: list[int], turn: Turn, logits: np.ndarray, number: int) -> str | None:
    """Where a reply of llama.cpp parts from ours, None if it does not. `logits` (T, V) are ours along our reply."""
    pairs = enumerate(zip(greedy, turn.reply, strict=False))
    at = next((index for index, (theirs, ours) in pairs if theirs != ours), None)
    if at is None:
        return None
    where = f"token {at + 1} of turn {number}"
    if greedy[at] >= logits.shape[1]:
        return f"{where}, where llama.cpp takes a padding row of the table"
    margin = float(logits[at, turn.reply[at]] - logits[at, greedy[at]])
    if margin < 0:
        return f"{where}, where llama.cpp takes a control token that our chat does not generate"
    return f"{where}, where our model prefers its own token by {margin:.2g}"
