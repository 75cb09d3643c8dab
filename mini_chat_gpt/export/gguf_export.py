"""Export to llama.cpp and Ollama: a GGUF file, a Modelfile and a model card next to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mini_chat_gpt.checkpoints.save import require_new
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.writable import require_writable
from mini_chat_gpt.export.announce import Exported, announce, checked_lines, command_line
from mini_chat_gpt.export.card import model_card
from mini_chat_gpt.export.gguf_model import architecture_of, gguf_tensors, model_metadata
from mini_chat_gpt.export.gguf_tokenizer import gguf_tokenizer
from mini_chat_gpt.export.gguf_writer import aligned, write_gguf
from mini_chat_gpt.export.llama_cpp import compare_with_llama_cpp
from mini_chat_gpt.export.losses import gguf_losses
from mini_chat_gpt.export.modelfile import modelfile
from mini_chat_gpt.export.placing import draft_folder, free_names, place_files
from mini_chat_gpt.export.proof import BOUNDS, Proof, prove
from mini_chat_gpt.export.source import Source, open_source
from mini_chat_gpt.export.template import template_notes

DEFAULT_TYPE = "f16"


def export_gguf(path: Path, file: Path, kind: str = DEFAULT_TYPE, check: bool = True) -> Exported:
    """Write a GGUF file of the model that `path` names, and return what was written.

    kind: the type of its matrices, a key of `gguf_model.FILE_TYPES`. Raises UserError, and ProofError if the check fails; then nothing
    is left behind.
    """
    require_new(file, path)
    require_writable(file.parent)
    source = open_source(path)
    architecture = architecture_of(source)
    try:
        tokenizer = gguf_tokenizer(source.tokenizer, source.config.vocab_size)
    except UserError as error:
        raise UserError(f"{source.path} can't be exported to GGUF: {error}") from None
    tensors, lines = gguf_tensors(source, architecture, kind)
    metadata = model_metadata(source, architecture, kind, file.stem) | tokenizer.metadata
    announce(file, sum(aligned(tensor.n_bytes) for tensor in tensors))
    licenses = {} if source.origin is None else source.origin.files
    with draft_folder(file) as draft:
        written = draft / file.name
        write_gguf(written, metadata, tensors)
        losses = gguf_losses(source.tokenizer, tokenizer.exact)
        proof = prove(source.path, written, BOUNDS[kind], losses) if check else None
        if proof is not None:
            more = compare_with_llama_cpp(written, proof, source.tokenizer, BOUNDS[kind])
            proof = replace(proof, lines=[*proof.lines, *more])
        text, about_modelfile = modelfile(source.tokenizer, file.name, licenses.get("LICENSE"))
        names = free_names(file.parent, file.stem, {"Modelfile": "Modelfile", "card": "README.md"})
        notes = [*lines, *tokenizer.lines, *about_modelfile]
        (draft / "Modelfile").write_text(text, encoding="utf-8", newline="")
        card = _card(source, path, file, kind, names["Modelfile"].name, notes, proof)
        (draft / "card").write_text(card, encoding="utf-8", newline="")
        files = {draft / what: name for what, name in names.items()}
        for name, content in licenses.items():
            if not (file.parent / name).exists():
                (draft / name).write_text(content, encoding="utf-8", newline="")
                files[draft / name] = file.parent / name
        place_files({**files, written: file})  # last: whoever sees the file sees the others
    beside = " and ".join(name.name for name in files.values())
    first = f"Exported a {architecture.name} ({kind}) to {file}, with {beside} next to it."
    return Exported([first, *notes, *checked_lines(proof)], proof)


def _card(
    source: Source, path: Path, file: Path, kind: str, modelfile_name: str, notes: list[str], proof: Proof | None
) -> str:
    usage = [
        "```",
        f"ollama create {file.stem.lower()} -f {modelfile_name} && ollama run {file.stem.lower()}",
        f"llama-cli -m {file.name} --jinja" if source.tokenizer.chat_format else f"llama-cli -m {file.name} -no-cnv",
        "```",
    ]
    command = command_line(path, file, type=kind, check=proof is not None)
    checked = None if proof is None else proof.lines
    return model_card(file.stem, source, command, usage, [*notes, *template_notes(source.tokenizer)], checked)
