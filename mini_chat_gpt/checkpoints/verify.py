"""Whether a checkpoint folder is what was written: every file has its hash, and no weight is NaN or infinite.

Reading gigabytes takes seconds, so what has been verified is recorded next to the checkpoint, in .verified.json of the folder
that contains it. A file with the same size, times of change and inode is not read again. The record only saves time: one
that is missing, damaged or can't be written means that files are read again.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import write_json
from mini_chat_gpt.common.json_files import DamagedJSON, JSONRecord, read_json
from mini_chat_gpt.common.manifest import (
    MANIFEST,
    Damage,
    Identity,
    Manifest,
    file_identity,
    read_manifest,
    require_unchanged,
)
from mini_chat_gpt.tokenizer.chat_tokenizer import ENCODER_FILE, META_FILE
from mini_chat_gpt.tokenizer.hf_export import TEMPLATE_FILE

META, MODEL, OPTIMIZER = "mini_chat_gpt.json", "model.safetensors", "optimizer.safetensors"
STATE = "training_state.json"
RAW = "raw_weights.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
RECORD = ".verified.json"

_WEIGHTS = {MODEL, Path(MODEL).stem, ADAPTER}
_TOKENIZER = {META_FILE, *ENCODER_FILE.values(), "tokenizer.json", "tokenizer_config.json", TEMPLATE_FILE}
_SHARDED = {Path(name).stem for name in (MODEL, OPTIMIZER, RAW)}
_OWN = {META, MODEL, OPTIMIZER, STATE, RAW, ADAPTER, ADAPTER_CONFIG, "config.json"} | _TOKENIZER | _SHARDED
"""Files and folders that checkpoints consist of: none may be there without an entry in the manifest."""


class VerifiedFile(JSONRecord):
    """A file as it was when it was verified."""

    identity: Identity
    sha256: str


class Verified(JSONRecord):
    """The contents of .verified.json."""

    checkpoints: dict[str, dict[str, VerifiedFile]]


def damage_of(folder: Path, recheck: bool = False) -> str | None:
    """A description of the first damage of a checkpoint folder, or None. With `recheck` every file is read, whatever is recorded."""
    try:
        manifest = read_manifest(folder)
        _require_listed(folder, manifest)
        record = _read_record(folder.resolve().parent)
        before = {} if recheck else record.get(folder.resolve().name, {})
        files = {name: _verify(folder, name, manifest, before.get(name)) for name in manifest.files}
    except Damage as error:
        return str(error)
    except OSError as error:
        return f"it can't be read ({(error.strerror or str(error)).lower()})"
    verified = {name: file for name, file in files.items() if file is not None}
    if verified != before:
        _write_record(folder.resolve(), verified, record)
    return None


def require_metadata(folder: Path) -> None:
    """Raise Damage unless mini_chat_gpt.json, by which checkpoints are ranked, is what was written. Reads only small files."""
    manifest = read_manifest(folder)
    _require_listed(folder, manifest)
    require_unchanged(folder, META, manifest.files[META])


def _require_listed(folder: Path, manifest: Manifest) -> None:
    if META not in manifest.files:
        raise Damage(f"{META} is not listed in its {MANIFEST}")
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if name.parts[0] in _OWN and name.as_posix() not in manifest.files and not file.is_dir():
            raise Damage(f"{name} is not listed in its {MANIFEST}")


def _verify(folder: Path, name: str, manifest: Manifest, before: VerifiedFile | None) -> VerifiedFile | None:
    """Read the file unless it is the one that was verified before. Raises Damage."""
    entry, now = manifest.files[name], None
    with suppress(OSError):  # which reading the file reports
        # Before reading, so that a later change is noticed.
        now = VerifiedFile(identity=file_identity(folder / name), sha256=entry.sha256)
        if now == before:
            return now
    require_unchanged(folder, name, entry)
    if name.split("/")[0] in _WEIGHTS:
        _require_finite(folder, name)
    return now


def _require_finite(folder: Path, name: str) -> None:
    """Raise Damage if a tensor of the file has a NaN or an infinite value: every reply of such a model would be meaningless."""
    from safetensors import SafetensorError

    from mini_chat_gpt.checkpoints.tensor_files import is_finite, read_header, read_one  # here: it imports PyTorch

    try:
        infos, _ = read_header(folder / name)  # which limits its size
        for key in infos:  # one by one: a file that is open for all of them would stay in memory as a whole
            tensor = read_one(folder / name, key)
            if tensor.is_floating_point() and not is_finite(tensor):
                raise Damage(f"{key} is not finite (NaN or infinite); training has diverged, use an earlier checkpoint")
    except (SafetensorError, ValueError) as error:
        raise Damage(f"{name} can't be read ({error})") from None


def _read_record(parent: Path) -> dict[str, dict[str, VerifiedFile]]:
    with suppress(FileNotFoundError, DamagedJSON):
        return read_json(parent / RECORD, Verified, "").checkpoints
    return {}


def _write_record(folder: Path, verified: dict[str, VerifiedFile], record: dict[str, dict[str, VerifiedFile]]) -> None:
    """Store what was verified, and forget checkpoints that no longer exist."""
    present = {name: files for name, files in record.items() if (folder.parent / name).is_dir()}
    with suppress(UserError, OSError):  # a folder that can't be written to
        write_json(folder.parent / RECORD, Verified(checkpoints=present | {folder.name: verified}).model_dump())
