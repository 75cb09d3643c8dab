"""Where an imported model comes from: name, license, base models, and its license files.

All of it is stored in the checkpoint's mini_chat_gpt.json (`origin`) and travels through training, merging and export. Each
checkpoint of such a model has a model card, README.md, and the license files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import read_file
from mini_chat_gpt.common.hub_names import repository_of
from mini_chat_gpt.common.json_files import JSONRecord
from mini_chat_gpt.common.page import shown_path
from mini_chat_gpt.common.text import clean
from mini_chat_gpt.common.yaml_files import parse_yaml

CARD = "README.md"
MAX_TEXT, MAX_FILES = 2**18, 8
_LICENSE_FILE = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)([-._][\w.-]{1,40})?", re.IGNORECASE | re.ASCII)


def _license_file_name(name: str) -> str:
    if not _LICENSE_FILE.fullmatch(name):
        raise ValueError("must be the name of a license file")
    return name


class Origin(JSONRecord):
    """The entry in mini_chat_gpt.json."""

    source: str
    """File or folder that was imported, without the path to it."""
    name: str | None = None
    repository: str | None = None
    """ "org/name" on the Hugging Face hub, if it was fetched from there."""
    commit: str | None = None
    """Of the repository."""
    family: str | None = Field(None, max_length=40)
    """The family that its files were written for, see checkpoints/families.py."""
    license: str | None = None
    """As the model card of the source has it, for example "apache-2.0"."""
    license_link: str | None = None
    base_model: list[str] = Field(default=[], max_length=20)
    files: dict[Annotated[str, AfterValidator(_license_file_name)], str] = Field(default={})
    """License files: name -> text."""

    def describe(self) -> str:
        """One line for the terminal: license and origin."""
        parts = [f"license {self.license or 'not stated'}"]
        parts += [f"from {self.repository or self.name or self.source}"]
        if self.commit:
            parts.append(f"commit {self.commit[:12]}")
        if self.base_model:
            parts.append(f"based on {', '.join(self.base_model)}")
        if self.files:
            parts.append(f"with {', '.join(self.files)}")
        return clean("; ".join(parts))


def origin_of_folder(folder: Path) -> Origin:
    """What a Hugging Face folder says: the first lines of README.md, and its license files."""
    card = _front_matter(folder / CARD)
    return Origin(
        source=_last_part(folder),
        name=_text(card.get("model_name")) or _last_part(folder),
        **_repository(folder),
        license=_text(card.get("license_name")) or ", ".join(_texts(card.get("license"))) or None,
        license_link=_text(card.get("license_link")),
        base_model=_texts(card.get("base_model")),
        files=_license_files(folder),
    )


def origin_of_gguf(path: Path, metadata: Mapping[str, Any]) -> Origin:
    """What the metadata of a GGUF file say, and the license files next to it."""
    bases = []
    for number in range(20):
        prefix = f"general.base_model.{number}."
        base = _text(metadata.get(prefix + "repo_url")) or _text(metadata.get(prefix + "name"))
        bases += [base] if base else []
    return Origin(
        source=path.name,
        name=_text(metadata.get("general.name")),
        **_repository(path),
        license=_text(metadata.get("general.license.name")) or _text(metadata.get("general.license")),
        license_link=_text(metadata.get("general.license.link")),
        base_model=bases,
        files=_license_files(path.parent),
    )


def model_card(origin: Origin, info: Mapping[str, Any]) -> str:
    """The text of README.md: Hugging Face's front matter, and the same in words. `info` is that of the checkpoint."""
    job = {"sft": "fine-tuned", "pretrain": "trained further"}.get(str(info.get("job")), "converted")
    lines = [*card_header(origin), f"# {origin.name or origin.source}", ""]
    commit = f" (commit {origin.commit})" if origin.commit else ""
    lines.append(f"This model was {job} with mini_chat_gpt from `{origin.repository or origin.source}`{commit}.")
    lines.append(f"Its license is {origin.license or 'not stated by its source'}.")
    if origin.base_model:
        lines.append(f"Its source names as base model: {', '.join(origin.base_model)}.")
    if origin.files:
        lines.append(f"The license files of its source are kept: {', '.join(origin.files)}.")
    return "\n".join(lines) + "\n"


def card_header(origin: Origin | None) -> list[str]:
    """The lines at the beginning of a model card that Hugging Face reads, with an empty line after them."""
    lines = ["---"]
    if origin is not None and origin.license:
        lines.append(f"license: {_quoted(origin.license)}")
    if origin is not None and origin.license_link:
        lines.append(f"license_link: {_quoted(origin.license_link)}")
    bases = [] if origin is None else [origin.repository] if origin.repository else origin.base_model
    if bases:
        lines += ["base_model:", *(f"- {_quoted(base)}" for base in bases)]
    return [*lines, "library_name: transformers", "---", ""]


def write_origin(folder: Path, origin: Origin, info: Mapping[str, Any]) -> None:
    """Write the model card and the license files into a checkpoint folder."""
    for name, text in origin.files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    (folder / CARD).write_text(model_card(origin, info), encoding="utf-8", newline="")


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The YAML between --- and --- at the beginning of a model card; {} if there is none."""
    with suppress(UserError):
        text = read_file(path, 2**22)[:MAX_TEXT].decode("utf-8", "replace").replace("\r\n", "\n")
        if text.startswith("---\n") and (end := text.find("\n---", 4)) > 0:
            values = parse_yaml(text[4:end], str(path)).value
            return values if isinstance(values, dict) else {}
    return {}


def _license_files(folder: Path) -> dict[str, str]:
    files = {}
    with suppress(OSError):
        for name in sorted(name for name in os.listdir(folder) if _LICENSE_FILE.fullmatch(name))[:MAX_FILES]:
            with suppress(UserError):
                files[name] = read_file(folder / name, MAX_TEXT).decode("utf-8", "replace")
    return files


def _repository(path: Path) -> dict[str, str]:
    """The fields `repository` and `commit`, for what is in the hub's cache."""
    found = repository_of(path)
    return {} if found is None else {"repository": found[0], "commit": found[1]}


def _last_part(path: Path) -> str:
    return shown_path(path.resolve())


def _text(value: object) -> str | None:
    return clean(value)[:200] if isinstance(value, str) and value.strip() else None


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for one in values[:20] if (text := _text(one))]


def _quoted(text: str) -> str:
    """A YAML value that is a text whatever it spells."""
    return "'" + text.replace("'", "''") + "'"
