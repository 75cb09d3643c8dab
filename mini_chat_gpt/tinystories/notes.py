"""What a user should know about the examples that were made from records, in sentences."""

from __future__ import annotations

from collections import Counter

from mini_chat_gpt.tinystories.tasks import TASK_KINDS


def example_notes(stats: Counter[str], seq_len: int) -> list[str]:
    """What happened to the examples that `InstructDataset.stats` counts."""
    made, fit, notes = f"{stats['examples']:,}", f"{seq_len:,} tokens", []
    if n := stats["shortened"]:
        notes.append(f"{n:,} of {made} examples whose story lost text from its middle, to fit into {fit}.")
    if n := stats["substituted"]:
        notes.append(f"{n:,} of {made} examples made from another record, because their own record gives no task.")
    if too_long := [(n, kind) for kind in TASK_KINDS if (n := stats[f"too long: {kind}"])]:
        kinds = ", ".join(f"{kind} {n:,}" for n, kind in sorted(too_long, reverse=True))
        notes.append(f"Tasks that don't fit into {fit}, among {made} examples: {kinds}.")
    return notes
