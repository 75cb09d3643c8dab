"""The replies of an installed llama.cpp through its command llama-completion: it prints the ids of a prompt, and the text of a reply.

It prints no logits. A reply that parts from ours where our model clearly prefers its own token fails the check, as rounding can't
explain it.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

from mini_chat_gpt.checkpoints.gguf import GGUFFile
from mini_chat_gpt.export.compare import Turn
from mini_chat_gpt.export.proof import Proof, ProofError
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

PROGRAM = "llama-completion"
SECONDS = 600.0
ATTEMPTS = 5
"""It ends without waiting for the thread that writes its output, so that the end of a reply is lost at times on a busy machine."""
END = b"\n\n"
"""The end of its complete output."""
CLEAR = 8.0
"""A token is clearly preferred if its logit exceeds all others by this multiple of the bound, which is a root mean square."""
_ID = re.compile(rb"^(?:[\d.]+ I)? *(\d+) -> '", re.MULTILINE)
"""A token of the prompt with --verbose-prompt, with or without the time."""


def compare_completions(file: Path, proof: Proof, tokenizer: ChatTokenizer, limit: float, threads: int) -> str:
    """Compare llama.cpp's ids of the prompts, and its greedy replies, with the turns of a proof; returns a phrase about them.

    limit: the bound on the difference of logits, relative to their size. Raises ProofError if the program fails or differs.
    """
    parts: str | None = None
    for number, (turn, logits) in enumerate(zip(proof.turns, proof.replies.logits, strict=True), 1):
        context = min(len(turn.prompt) + len(turn.reply) + 8, proof.config.context_length)
        ids, reply = _complete(file, _without_bos(turn.prompt_text, file, tokenizer), len(turn.reply), context, threads)
        if ids != list(turn.prompt):
            raise ProofError(f"llama.cpp has other ids than ours for the prompt of turn {number}.")
        at = _parts_at(reply, turn, tokenizer)
        if parts is None and at is not None:
            parts = f"token {at + 1} of turn {number}, where {_preference(logits[at], turn.reply[at], limit)}"
    if parts is None:
        return "the same ids and the same greedy replies"
    return f"the same ids; the greedy replies part at {parts}"


def _without_bos(text: str, file: Path, tokenizer: ChatTokenizer) -> str:
    """The text of a prompt, without the BOS that llama.cpp inserts by itself."""
    metadata = GGUFFile(file).metadata
    if not metadata["tokenizer.ggml.add_bos_token"]:
        return text
    return text.removeprefix(tokenizer.decode([metadata["tokenizer.ggml.bos_token_id"]], control=True))


def _complete(file: Path, prompt: str, n_tokens: int, context: int, threads: int) -> tuple[list[int], bytes]:
    """Run the program: the ids of the prompt, and the text of the reply with the names of control tokens in it."""
    options = {"-m": file.resolve(), "-p": prompt, "-n": n_tokens, "-c": context, "-t": threads, "-ngl": 0, "--temp": 0}
    command = [PROGRAM, *(str(word) for option in options.items() for word in option)]
    command += ["-no-cnv", "--no-escape", "--no-display-prompt", "--verbose-prompt", "--special"]
    for _ in range(ATTEMPTS):
        done = _run(command)
        if done.stdout.endswith(END):
            return [int(digits) for digits in _ID.findall(done.stderr)], done.stdout.removesuffix(END)
    raise ProofError(
        f"llama.cpp ({PROGRAM}) loses the end of its replies; remove it from the PATH, or use node-llama-cpp."
    )


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run the program. Raises ProofError if it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProofError(f"llama.cpp ({PROGRAM}) can't run the file: {error}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if "rror" in line]
        reason = lines[0].strip()[:300] if lines else f"exit code {done.returncode}"
        raise ProofError(f"llama.cpp ({PROGRAM}) can't run the file: {reason}")
    return done


def _parts_at(reply: bytes, turn: Turn, tokenizer: ChatTokenizer) -> int | None:
    """The index of the first token of ours that is not in a reply of llama.cpp, None if they are equal."""
    reply = reply.removesuffix(b" [end of text]\n")
    if reply == tokenizer.decode_bytes(turn.reply, control=True, start=False):
        return None
    begins = (tokenizer.decode_bytes(turn.reply[: at + 1], control=True, start=False) for at in range(len(turn.reply)))
    return next((at for at, begin in enumerate(begins) if not reply.startswith(begin)), len(turn.reply) - 1)


def _preference(logits: np.ndarray, own: int, limit: float) -> str:
    """How clearly our model prefers its own token, given its logits (V,). Raises ProofError if rounding can't change that."""
    margin = float(logits[own] - np.delete(logits, own).max())
    if margin > CLEAR * limit * float(logits.std()):
        raise ProofError(f"llama.cpp gives another reply where our model prefers its own token by {margin:.2g}.")
    if margin < 0:
        return "llama.cpp may take a control token or a padding row, which our chat does not generate"
    return f"our model prefers its own token by only {margin:.2g}"
