"""Load a model and its tokenizer from a checkpoint folder, a run folder, or a model of another project.

Every command gets a model and its tokenizer from `load_pair`, which checks that they belong together.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mini_chat_gpt.checkpoints.adapters import (
    ADAPTER,
    AdapterMetadata,
    adapter_shapes,
    find_base,
    is_adapter,
    load_adapter,
    read_adapter,
)
from mini_chat_gpt.checkpoints.build import StoredModel, model_in_memory, model_in_parts, model_shapes
from mini_chat_gpt.checkpoints.families import family_of_model, part_of_layout, plain_part
from mini_chat_gpt.checkpoints.find import META, MODEL, find_checkpoint, is_checkpoint, read_meta, steps_of
from mini_chat_gpt.checkpoints.foreign import (
    import_tokenizer,
    is_foreign,
    open_foreign,
    read_tokenizer,
    refuse_tokenizer,
)
from mini_chat_gpt.checkpoints.hf import from_hf_state, to_hf_state
from mini_chat_gpt.checkpoints.hub_models import local_model
from mini_chat_gpt.checkpoints.origin import Origin
from mini_chat_gpt.checkpoints.peft_adapter import base_name, is_peft_folder, with_adapter
from mini_chat_gpt.checkpoints.sharded import Like, Tensors, read_file, read_shards, read_shards_header, shards_of
from mini_chat_gpt.checkpoints.tensor_files import (
    FLOATS,
    Shapes,
    TensorInfo,
    compare_tensors,
    read_header,
    read_one,
)
from mini_chat_gpt.checkpoints.tensor_parts import stored_shapes
from mini_chat_gpt.common.device import pick_device
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.json_files import describe_problem, short
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.lora import Frozen, add_lora, merge_lora
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

REMEDY = "use another checkpoint"
ADDED_LATER = frozenset({"mlp_bias", "norm_placement", "norm_offset", "embedding_factor", "window_rope_theta"})
"""Fields of `GPTConfig` that the oldest checkpoints lack; their defaults mean "as before"."""


def load_checkpoint(path: Path | str, device: str | torch.device = "auto") -> tuple[GPT, ChatTokenizer]:
    """Load a model (float32, in eval mode) and its tokenizer from a checkpoint or run folder, or a model of another project.

    Those are Hugging Face folders, GGUF files, llama2.c's .bin and nanoGPT's ckpt.pt. Raises UserError with the reason if
    there is none, or if it is damaged.
    """
    target = device if isinstance(device, torch.device) else pick_device(device)
    model, tokenizer = load_pair(find_source(Path(path)))
    return model.to(target).eval(), tokenizer


def find_source(path: Path, recheck: bool = False, weights: bool = True) -> Path:
    """What a path means: a model of the hub (its local copy), a file or folder of another project (itself), or a checkpoint as
    `find_checkpoint` finds it. Without `weights`, those of a model of the hub are not fetched.
    """
    path = local_model(path, weights)
    return path if is_foreign(path) else find_checkpoint(path, recheck=recheck)


def load_pair(
    source: Path,
    tokenizer: str | None = None,
    adapted: bool = False,
    base: Path | None = None,
    frozen: Frozen | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> tuple[GPT, ChatTokenizer]:
    """Load a model on the CPU and its tokenizer: the only way in which a command gets them.

    source      a checkpoint folder, or a file or folder of another project, also an adapter of PEFT
    tokenizer   for a file without one, see `import_model`
    adapted     keep the adapter of a checkpoint for further training, instead of merging it; see `load_adapted`
    base        the base of an adapter, if it is not where the adapter says
    dtype       precision of the weights; None keeps that of the file (float32 for quantized weights)

    Raises UserError if one of them can't be read, and if they don't belong together.
    """
    if adapted:
        its_tokenizer, _ = load_tokenizer(source)  # first, because the weights take longer
        return load_adapted(source, base, frozen), its_tokenizer
    stored, its_tokenizer = open_pair(source, tokenizer, dtype, base)
    return stored.load(), its_tokenizer


def open_pair(
    source: Path, tokenizer: str | None = None, dtype: torch.dtype | None = torch.float32, base: Path | None = None
) -> tuple[StoredModel, ChatTokenizer]:
    """Like `load_pair`, but the weights are not read yet (those of our adapters are, and are merged into their base)."""
    if is_peft_folder(source):
        return _open_peft(source, tokenizer, dtype, base)
    if is_foreign(source):
        stored, its_tokenizer = open_foreign(source, tokenizer, dtype)
        require_match(stored.config, its_tokenizer, source)
        return stored, its_tokenizer
    refuse_tokenizer(source, tokenizer)
    its_tokenizer, _ = load_tokenizer(source)
    return open_checkpoint(source, dtype), its_tokenizer


def _open_peft(
    folder: Path, tokenizer: str | None, dtype: torch.dtype | None, base: Path | None
) -> tuple[StoredModel, ChatTokenizer]:
    """The base of an adapter of PEFT, merged with the adapter as it is read, and the adapter's tokenizer if it has one."""
    source = base or _base_of_peft(folder)
    if is_peft_folder(source):
        raise UserError(
            f"{source}, the base model of {folder}, is an adapter itself; merge it into its own base first."
        )
    stored, its_tokenizer = open_pair(source, tokenizer, dtype)
    if is_checkpoint(source) and not is_adapter(source):
        part_of = part_of_layout(read_meta(source).get("layout", ""), str(source / META))
    else:
        family = family_of_model(stored.config, stored.origin)
        part_of = plain_part if family is None else family.hf_part
    if (folder / "tokenizer.json").is_file():
        own = read_tokenizer(folder)
        same = own.fingerprint() == its_tokenizer.fingerprint() and own.template in (None, its_tokenizer.template)
        its_tokenizer = its_tokenizer if same else own  # the base's may know more tokens that end a reply
    stored = with_adapter(stored, part_of, folder)
    require_match(stored.config, its_tokenizer, folder)
    return stored, its_tokenizer


def _base_of_peft(folder: Path) -> Path:
    """Where the base of an adapter of PEFT is. Raises UserError if it is not here."""
    name = base_name(folder)
    if not os.path.exists(name) and os.path.exists(folder / name):
        return find_source(folder / name)
    try:
        return find_source(Path(name))
    except UserError as error:
        raise UserError(
            f"{folder} is an adapter for the base model {short(name)}, which is missing here; merge the two with "
            f"`mini-chat-gpt merge {folder} OUT --base PATH` ({error})"
        ) from None


def load_tokenizer(folder: Path) -> tuple[ChatTokenizer, GPTConfig]:
    """Load the tokenizer of a checkpoint, or of a model of another project, and the config of the model that it belongs to.

    Raises UserError if it belongs to another model.
    """
    if is_peft_folder(folder):
        stored, its_tokenizer = open_pair(folder)
        return its_tokenizer, stored.config
    if is_foreign(folder):
        return import_tokenizer(folder)
    meta = read_meta(folder)
    tokenizer, config = ChatTokenizer.load(folder), _model_config(folder, meta)
    require_match(config, tokenizer, folder)
    if meta.get("tokenizer") not in (None, tokenizer.fingerprint()):
        raise UserError(
            f"The tokenizer in {folder} is not the one that its model was saved with, so ids would stand for other text; "
            f"{REMEDY}."
        )
    return tokenizer, config


def load_named_tokenizer(name: str) -> ChatTokenizer:
    """The tokenizer of a model (a folder, a run, or one of the hub, whose weights are not fetched), or what `ChatTokenizer.load`
    accepts. Raises UserError.
    """
    path = Path(name)
    if hub_name(name, "model") or (path.is_dir() and (is_foreign(path) or steps_of(path))):
        return load_tokenizer(find_source(path, weights=False))[0]
    return ChatTokenizer.load(name)


def require_match(config: GPTConfig, tokenizer: ChatTokenizer, source: Path | str) -> None:
    """Raise UserError if the tokenizer has ids for which the model's table has no row."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} ids, but the model's table has only {config.vocab_size} "
            "rows; they don't belong together, use the tokenizer that the model was trained with."
        )


def load_model(folder: Path) -> GPT:
    """Load the model of one checkpoint folder on the CPU, in its precision. An adapter is merged into its base. See `load_pair`."""
    return open_checkpoint(folder).load()


def open_checkpoint(folder: Path, dtype: torch.dtype | None = None) -> StoredModel:
    """Open the model of one checkpoint folder, in the precision `dtype`; see `open_pair` and `load_model`."""
    source = f"The model in {folder}"
    if is_adapter(folder):
        model = load_adapted(folder)
        merge_lora(model)
        if dtype is not None:
            model.to(dtype)
        return model_in_memory(model.config, model.state_dict(), source, model.origin)
    meta = read_meta(folder)
    config, origin = _model_config(folder, meta), None if meta.get("origin") is None else Origin(**meta["origin"])
    infos = tensors_in(folder, MODEL)
    shapes = model_shapes(config, len(infos), source)
    if meta.get("sharded"):
        state = from_hf_state(read_tensors(folder, MODEL, to_hf_state(shapes, config), dtypes=FLOATS), config)
        return model_in_memory(
            config, {name: one.to(dtype or one.dtype) for name, one in state.items()}, source, origin
        )
    path, part_of = folder / MODEL, part_of_layout(meta.get("layout", ""), str(folder / META))
    compare_tensors(infos, stored_shapes(shapes, part_of, config), str(path), REMEDY, FLOATS)
    return model_in_parts(config, part_of, infos, partial(read_one, path), source, dtype, origin)


def load_adapted(folder: Path, base: Path | None = None, frozen: Frozen | None = None) -> GPT:
    """Load the base of the adapter in `folder` and add the adapter, ready for further training. See `load_pair`.

    `base` defaults to the folder that the adapter names. `frozen` is the precision of the base's weights. By default it is
    that of the adapter's training: weights that were 4-bit then are quantized again, so that the model in use is the model
    that was trained.
    """
    metadata, expected = AdapterMetadata.read(folder), _model_config(folder, read_meta(folder))
    assert metadata is not None, f"{folder} is not an adapter"
    base, adapter = base or find_base(folder, metadata), read_adapter(metadata)
    (base_tokenizer, _), (tokenizer, _) = load_tokenizer(base), load_tokenizer(folder)
    if base_tokenizer.fingerprint() != tokenizer.fingerprint():
        raise UserError(f"{base} is not a base for the adapter {folder}: its tokenizer is another one.")
    stored = open_checkpoint(base)
    if stored.config != expected:
        fields = [name for name, value in expected if getattr(stored.config, name) != value]
        raise UserError(f"{base} is not a base for the adapter {folder}: they differ in {', '.join(fields)}.")
    frozen = frozen or ("nf4" if adapter.frozen == "nf4" else "float32")
    model = stored.load(frozen)
    tensors = read_tensors(folder, ADAPTER, adapter_shapes(model, adapter, folder))
    if set(add_lora(model, adapter.settings, frozen, adapter.token_ids)) != set(adapter.layers):
        raise UserError(f"{folder / META} is damaged: its layers are not those of settings.targets; {REMEDY}.")
    model.adapter = replace(adapter, frozen=frozen)
    load_adapter(model, tensors, str(folder / ADAPTER))
    return model


def _model_config(folder: Path, meta: Mapping[str, Any]) -> GPTConfig:
    """The model's config as the checkpoint stores it. Raises UserError for a field that only a later version knows."""
    fields = meta["gpt_config"]
    if unknown := sorted(fields.keys() - GPTConfig.model_fields.keys()):
        # Even a default value can change the model: this version does not know which value means "as before".
        raise UserError(
            f"The model in {folder} has settings that this version does not know ({', '.join(unknown)}); "
            "update mini_chat_gpt."
        )
    if missing := sorted(GPTConfig.model_fields.keys() - fields.keys() - ADDED_LATER):
        raise UserError(f"{folder / META} is damaged: gpt_config lacks {', '.join(missing)}; {REMEDY}.")
    try:
        return GPTConfig(**fields)
    except ValidationError as error:
        problem = describe_problem(error.errors(include_url=False)[0])
        raise UserError(f"{folder / META} describes an impossible model: {problem}; {REMEDY}.") from None


def tensors_in(folder: Path, name: str, remedy: str = REMEDY) -> dict[str, TensorInfo]:
    """The tensors in one file of a checkpoint, without reading them. Raises UserError if it is missing or damaged."""
    path = _tensor_path(folder, name)
    try:
        infos = read_header(path)[0] if path == folder / name else read_shards_header(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); {remedy}.") from None
    if not infos and path != folder / name:
        raise UserError(f"{path} has no shards; {remedy}.")
    return infos


def tensors_exist(folder: Path, name: str) -> bool:
    """Whether a checkpoint has a file of this name, or shards of it."""
    return _tensor_path(folder, name).exists()


def read_tensors(
    folder: Path,
    name: str,
    expected: Shapes,
    like: Like = lambda _: None,
    remedy: str = REMEDY,
    dtypes: Collection[torch.dtype] = (torch.float32,),
) -> Tensors:
    """Read the tensors of one file of a checkpoint on the CPU, or sharded where `like` returns a sharded tensor for a name.

    Raises UserError if they are not the expected ones, before they take any memory.
    """
    path = _tensor_path(folder, name)
    compare_tensors(tensors_in(folder, name, remedy), expected, str(path), remedy, dtypes)
    return read_file(path, like) if path == folder / name else read_shards(path, like)


def _tensor_path(folder: Path, name: str) -> Path:
    return shards_of(folder, name) if read_meta(folder).get("sharded") else folder / name
