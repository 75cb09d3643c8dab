"""`mini-chat-gpt export CHECKPOINT DST`: write a model for other programs, and check that it gives the same answers there.

DST is a Hugging Face folder, or a GGUF file if it ends in .gguf. Everything is written and checked under a temporary name; DST
appears only when it is complete and has passed. Exit code 1 if it does not pass.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mini_chat_gpt.checkpoints.convert import DTYPES
from mini_chat_gpt.checkpoints.save import require_new
from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.writable import require_writable
from mini_chat_gpt.export.adapter_writer import adapter_model, name_of_base, write_adapter
from mini_chat_gpt.export.announce import Exported, announce, checked_lines, command_line
from mini_chat_gpt.export.card import model_card
from mini_chat_gpt.export.gguf_export import DEFAULT_TYPE, export_gguf
from mini_chat_gpt.export.hf_writer import HFModel, hf_model, write_folder
from mini_chat_gpt.export.losses import hf_losses
from mini_chat_gpt.export.placing import draft_folder, place_folder
from mini_chat_gpt.export.proof import BOUNDS, Proof, ProofError, prove
from mini_chat_gpt.export.source import Source, open_source
from mini_chat_gpt.export.template import template_notes

ROUNDING = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def export_folder(
    path: Path, folder: Path, dtype: str | None = None, shard_bytes: int | None = None, check: bool = True
) -> Exported:
    """Write a Hugging Face folder of the model that `path` names, and return what was written.

    dtype: a key of DTYPES, None keeps the precision of the source. Raises UserError, and ProofError if the check fails; then nothing
    is left behind.
    """
    require_new(folder, path)
    require_writable(folder.parent)
    source = open_source(path, None if dtype is None else DTYPES[dtype])
    model = hf_model(source)
    announce(folder, model.n_bytes)
    with draft_folder(folder) as draft:
        write_folder(draft, source, model, *([] if shard_bytes is None else [shard_bytes]))
        proof = prove(source.path, draft, BOUNDS[_type(source, dtype)], hf_losses(source.tokenizer)) if check else None
        _write_texts(draft, folder, source, proof, command_line(path, folder, dtype=dtype, check=check))
        place_folder(draft, folder)
    return Exported([_described(model, folder), *checked_lines(proof)], proof)


def export_adapter(path: Path, folder: Path, check: bool = True) -> Exported:
    """Write the adapter that `path` names by itself, for PEFT; see `export_folder`."""
    require_new(folder, path)
    require_writable(folder.parent)
    model, source = adapter_model(path), open_source(path)
    announce(folder, model.n_bytes)
    base = name_of_base(model, source.origin)
    with draft_folder(folder) as draft:
        write_adapter(draft, model, source.tokenizer, base)
        losses = hf_losses(source.tokenizer)
        # Merging adds up to rounding of float32 in another order.
        proof = prove(source.path, draft, BOUNDS["f32"], losses, model.base) if check else None
        write_licenses(draft, source)
        usage = [
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({base!r})  # or the folder that has the base",
            f"model = PeftModel.from_pretrained(base, {folder.name!r})",
            f"tokenizer = AutoTokenizer.from_pretrained({folder.name!r})",
            "```",
        ]
        command = command_line(path, folder, adapter=True, check=check)
        card = model_card(
            folder.name,
            source,
            command,
            usage,
            template_notes(source.tokenizer),
            None if proof is None else proof.lines,
        )
        (draft / "README.md").write_text(card, encoding="utf-8", newline="")
        place_folder(draft, folder)
    return Exported([f"Exported an adapter for PEFT to {folder}; its base is {base}.", *checked_lines(proof)], proof)


def _type(source: Source, dtype: str | None) -> str:
    """The type whose bound holds: that of the rounding from the source's precision to the written one."""
    return "f32" if dtype is None else ROUNDING[dtype]


def _described(model: HFModel, folder: Path) -> str:
    return f"Exported a {model.family.name} for transformers ({model.family.causal_lm}) to {folder}."


def _write_texts(draft: Path, folder: Path, source: Source, proof: Proof | None, command: str) -> None:
    """Write the license files of the base, and the model card."""
    write_licenses(draft, source)
    chat = "tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors='pt', return_dict=True)"
    text = "tokenizer('Once upon a time', return_tensors='pt')"
    usage: list[str | None] = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({folder.name!r})",
        f"model = AutoModelForCausalLM.from_pretrained({folder.name!r})",
        "messages = [{'role': 'user', 'content': 'Hello!'}]" if source.tokenizer.chat_format else None,
        f"inputs = {chat if source.tokenizer.chat_format else text}",
        "output = model.generate(**inputs, max_new_tokens=200)",
        "print(tokenizer.decode(output[0, inputs['input_ids'].shape[1]:], skip_special_tokens=True))",
        "```",
    ]
    checked = None if proof is None else proof.lines
    notes = template_notes(source.tokenizer)
    card = model_card(folder.name, source, command, [line for line in usage if line is not None], notes, checked)
    (draft / "README.md").write_text(card, encoding="utf-8", newline="")


def write_licenses(folder: Path, source: Source) -> None:
    """Write the license files of the model that this one comes from."""
    for name, text in {} if source.origin is None else source.origin.files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt export` with a parsed command line."""
    destination: Path = arguments.destination
    try:
        if destination.suffix.lower() == ".gguf":
            exported = export_gguf(arguments.checkpoint, destination, arguments.type or DEFAULT_TYPE, arguments.check)
        elif arguments.adapter:
            exported = export_adapter(arguments.checkpoint, destination, arguments.check)
        else:
            exported = export_folder(
                arguments.checkpoint, destination, arguments.dtype, arguments.shard_size, arguments.check
            )
    except ProofError as error:
        print(
            f"error: {destination} was not written, because the check failed: {str(error).rstrip('.')}; use --no-check to write it "
            "nevertheless.",
            file=sys.stderr,
        )
        return 1
    print("\n".join(exported.lines))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("export", argv))


if __name__ == "__main__":
    exit_with(main)
