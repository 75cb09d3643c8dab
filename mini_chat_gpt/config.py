"""One typed object for all settings: read from YAML, overridden by `a.b=c`, validated once, passed in.

The docstring under each field is its only description: the comments of `sft_config.yaml` and the command line's help are
generated from it (`mini-chat-gpt config`). Nothing deep inside reads an environment variable or `sys.argv`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mini_chat_gpt.errors import UserError, nearest


class Section(BaseModel):
    """Base of all sections: unknown keys are mistakes, docstrings are descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class GPTConfig(Section):
    """Shape and architecture of a decoder. The defaults are the native family, the exact Llama subset."""

    vocab_size: int = Field(0, ge=0)
    """Rows of the embedding table (0 = the tokenizer's size). May be larger than the tokenizer: the rest is padding."""
    context_length: int = Field(512, ge=2)
    """Longest sequence in tokens."""
    n_layer: int = Field(6, ge=1)
    """Number of transformer blocks."""
    n_head: int = Field(6, ge=1)
    """Query heads per block."""
    n_kv_head: int | None = Field(None, ge=1)
    """Key/value heads (null = n_head; fewer = grouped-query attention)."""
    n_embd: int = Field(384, ge=1)
    """Width of the residual stream."""
    head_dim: int | None = Field(None, ge=1)
    """Width of one head (null = n_embd / n_head)."""
    intermediate_size: int | None = Field(None, ge=1)
    """Width inside the MLP (null = 8/3 n_embd, rounded up to a multiple of 16; 4 n_embd without a gate)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation: rmsnorm (Llama) or layernorm (GPT-2)."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance inside the norm."""
    position: Literal["rope", "learned", "none"] = "rope"
    """Positions: rotary (Llama), a learned table (GPT-2), or none."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_scaling: dict[str, Any] | None = None
    """Hugging Face's rope scaling (rope_type linear or llama3), null for none."""
    activation: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2"] = "swiglu"
    """MLP activation; swiglu and geglu have a gate."""
    bias: bool = False
    """Biases in the attention's output, the MLP and layernorm."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections."""
    qk_norm: bool = False
    """Normalise queries and keys per head (Qwen 3)."""
    attention_scale: float | None = None
    """Factor on q·k (null = 1/sqrt(head_dim); GPT-Neo uses 1)."""
    windows: tuple[int | None, ...] | None = None
    """Attention window of each layer, null for a full one; null instead of the list for full attention everywhere."""
    tie_embeddings: bool = True
    """The output head shares the embedding's weights."""

    @model_validator(mode="after")
    def _consistent(self) -> GPTConfig:
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head ({self.n_head}) must be a multiple of n_kv_head ({self.kv_heads})")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head}), or head_dim be given"
            )
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_size}")
        if self.windows is not None and len(self.windows) != self.n_layer:
            raise ValueError(f"windows has {len(self.windows)} entries for {self.n_layer} layers")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def gated(self) -> bool:
        return self.activation in ("swiglu", "geglu")

    @property
    def mlp_size(self) -> int:
        if self.intermediate_size:
            return self.intermediate_size
        return -(-8 * self.n_embd // 3 // 16) * 16 if self.gated else 4 * self.n_embd

    @property
    def is_llama(self) -> bool:
        """Whether `transformers`' Llama can hold this model as it is."""
        plain = self.norm == "rmsnorm" and self.position == "rope" and self.activation == "swiglu"
        return plain and not self.qk_norm and self.attention_scale is None and self.windows is None


# Shapes by name; parameters are for the vocabulary in the comment. With heads narrower than 64 small ones learn to copy later.
PRESETS: dict[str, dict[str, Any]] = {
    "1m": {"n_layer": 4, "n_head": 2, "n_embd": 128, "context_length": 512},  # 1.3 M with 4,096 entries
    "3m": {"n_layer": 5, "n_head": 3, "n_embd": 192, "context_length": 512},  # 3.0 M with 4,096
    "15m": {"n_layer": 6, "n_head": 6, "n_embd": 288, "context_length": 512},  # 15 M with 32,000
    "30m": {"n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 1024},  # 30 M with 50,304
    "124m": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context_length": 1024},  # 124 M with 50,304, GPT-2's shape
}


class ModelSection(GPTConfig):
    """The model to pretrain: a shape by name, any field of it overridden. Fine-tuning takes the base's own shape."""

    preset: str | None = "30m"
    """Shape by name: 1m, 3m, 15m, 30m or 124m (GPT-2's size); null = only what is given here."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("preset", cls.model_fields["preset"].default)
        if name is None:
            return given
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}{nearest(str(name), PRESETS)}")
        return PRESETS[name] | {"preset": name} | given

    def gpt_config(self, vocab_size: int) -> GPTConfig:
        """The architecture alone, with the table's size filled in where it is 0."""
        fields = self.model_dump(exclude={"preset"})
        return GPTConfig(**fields | {"vocab_size": self.vocab_size or vocab_size})


class ScheduleFields(Section):
    """What a phase of training needs to know about its length and learning rate."""

    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(0.01, gt=0)
    """Peak learning rate of the matrices when training.optimizer is muon."""
    max_steps: int | None = Field(10000, ge=1)
    """Optimizer steps (null: taken from epochs)."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data; when given, it decides instead of max_steps."""
    warmup_steps: int = Field(500, ge=0)
    """Steps of linear warm-up (a run that is not longer than this warms up over a tenth of its steps)."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after warm-up: cosine, linear, constant, or wsd (constant, then linear over the last decay_fraction)."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """The part of the steps after warm-up in which wsd decays."""
    final_lr_fraction: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak."""
    eval_interval: int = Field(500, ge=1)
    """Steps between evaluations."""
    save_interval: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    batch_size: int | None = Field(None, ge=1)
    """Overrides training.batch_size for this phase (null: don't)."""
    examples_per_step: int | None = Field(None, ge=1)
    """Overrides training.examples_per_step for this phase (null: don't)."""
    tokens_per_step: int | None = Field(None, ge=1)
    """Overrides training.tokens_per_step for this phase (null: don't)."""


class SFTSection(ScheduleFields):
    """Supervised fine-tuning."""

    pretrained_checkpoint: str | None = None
    """Base model: a checkpoint or run folder, a llama2.c .bin, or nanoGPT's ckpt.pt (null = the newest base under runs/)."""
    dataset_path: str = "./TinyStories"
    """Folder with TinyStories-Instruct files (TinyStoriesInstruct-train.txt and -valid.txt), or one such file."""
    save_dir: str = "runs/sft"
    """Run folder. One that already holds a run is left alone: the next free name (runs/sft-2, …) is taken."""
    resume_from: str | None = None
    """Run or checkpoint folder to go on from (null = start anew)."""


class PretrainSection(ScheduleFields):
    """Pretraining a base model on plain text."""

    dataset_path: str = "./TinyStories"
    """Folder or file with plain stories, or TinyStories-Instruct files of which the stories are taken."""
    tokenizer: str = "train"
    """"train" makes a byte-level BPE from the data; else an encoding's name (gpt2), a .tiktoken file, or a folder."""
    tokenizer_vocab_size: int = Field(4096, ge=260)
    """Entries of a tokenizer trained here, the four control tokens included."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    save_dir: str = "runs/base"
    """Run folder; one that already holds a run is left alone and the next free name taken."""
    resume_from: str | None = None
    """Run or checkpoint folder to go on from (null = start anew)."""


class TrainingSection(Section):
    """The training step, shared by pretraining and fine-tuning."""

    batch_size: int = Field(4, ge=1)
    """Examples per micro-batch of one process: what is in memory at a time."""
    examples_per_step: int | None = Field(None, ge=1)
    """Examples per optimizer step over all processes; accumulation follows (null = batch_size)."""
    tokens_per_step: int | None = Field(None, ge=1)
    """Tokens per optimizer step over all processes, instead of examples_per_step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices inside the blocks with AdamW for the rest."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, on matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the mean of gradients."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's decay of the mean of squared gradients."""
    grad_clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient (0 = no clipping)."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay, beside the best."""


class Lesson(Section):
    """Steps with easier examples; what isn't given is as in the data section and the phase's own settings."""

    share: float = Field(gt=0, lt=1)
    """Its part of the run's optimizer steps."""
    seq_len: int | None = Field(None, ge=16)
    """Longest example in tokens."""
    turns: int | None = Field(None, ge=1)
    """Most questions about one story."""
    shares: dict[str, float] | None = None
    """Shares of the kinds that differ from data.shares."""
    focus: float | None = Field(None, ge=0)
    """Loss weight of the deciding tokens. Copying forms sooner without one."""
    prompt_weight: float | None = Field(None, ge=0)
    """Loss weight of what isn't the assistant's."""
    tokens_per_step: int | None = Field(None, ge=1)
    """Tokens of an optimizer step."""
    weight_decay: float | None = Field(None, ge=0)
    """Weight decay. Copying forms sooner with a high one, which would hold stories back later."""


class DataSection(Section):
    """What the examples look like."""

    seq_len: int = Field(1024, ge=16)
    """Longest example in tokens; never more than the model's context. Longer stories lose text from their middle."""
    num_workers: int = Field(0, ge=0)
    """Processes that prepare examples (0 = in the training process)."""
    shares: dict[str, float] | None = None
    """Share of each task kind among the examples, e.g. {summary: 2, moral: 1}; null = the measured defaults."""
    weights: dict[str, float] | None = None
    """Loss weight of each task kind's tokens; null = the measured defaults."""
    focus: float = Field(3.0, ge=0)
    """Loss weight (at least) of tokens that end a reply or decide whether it is right; a factor on it for "Yes" and "No"."""
    prompt_weight: float = Field(0.0, ge=0)
    """Loss weight of what isn't the assistant's: 0 masks it (label -100); a little lets a small model learn from the stories it reads."""
    turns: int = Field(4, ge=1)
    """Most questions about one story in a training conversation; reading the story is most of the work."""
    curriculum: list[Lesson] = Field(default_factory=list)
    """Lessons before the others, easiest first, e.g. [{share: 0.2, seq_len: 96, shares: {quote: 4}}]; share: of the run's steps."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many records (null = all)."""
    system_message: str | None = None
    """System message put before every conversation and stored in the checkpoint's chat format (null = none)."""
    eval_examples: int = Field(400, ge=1)
    """Size of the fixed validation set, each example once."""


class SystemSection(Section):
    """The machine."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    multi_gpu: bool = False
    """Use all GPUs of this machine: start with torchrun, which decides the number of processes."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile: true, false, or auto (where it is known to pay, which so far is nowhere)."""
    mixed_precision: bool | Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto (true means the same): bf16 where the hardware is faster with it; false or fp32: float32."""
    seed: int = 1337
    """Seed of weights, data order, phrasings and sampling."""
    threads: int | None = Field(None, ge=1)
    """CPU threads (null = PyTorch's choice)."""


class WandbSection(Section):
    """Monitoring at wandb.ai; metrics.jsonl in the run folder is always written."""

    enabled: bool = True
    """Log to wandb; without an account or network the run is kept offline in the run folder, without a question."""
    project: str = "mini_chat_gpt"
    """Project name."""
    name: str | None = None
    """Run name (null = the run folder's)."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where there is an account and a network, else offline."""


class Config(Section):
    """All settings of a run."""

    sft: SFTSection = SFTSection()
    """Supervised fine-tuning."""
    pretrain: PretrainSection = PretrainSection()
    """Pretraining a base model on plain text."""
    model: ModelSection = ModelSection()
    """The model to pretrain: a shape by name, any field of it overridden. Fine-tuning takes the base's own shape."""
    training: TrainingSection = TrainingSection()
    """The training step, shared by pretraining and fine-tuning."""
    data: DataSection = DataSection()
    """What the examples look like."""
    system: SystemSection = SystemSection()
    """The machine."""
    wandb: WandbSection = WandbSection()
    """Monitoring at wandb.ai; metrics.jsonl in the run folder is always written."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (null = defaults), apply `section.key=value` overrides, validate.

    Raises UserError naming every wrong key or value, with the nearest valid key or the allowed values.
    """
    values: dict[str, Any] = {}
    source = "the command line"
    if path is not None:
        source = str(path)
        values = _read_yaml(Path(path))
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, source)


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validate a nested dict. Every problem is named at once, with its key."""
    try:
        return Config(**values)
    except ValidationError as error:
        problems = "; ".join(_explain(item) for item in error.errors())
        raise UserError(f"{source}: {problems}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(
            f"There is no config file {path}; `mini-chat-gpt config > {path}` writes the default one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config file {path} can't be read: {error}.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        at = f"{path}, line {where.line + 1}" if where else str(path)
        raise UserError(f"{at}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected sections such as `sft:` with keys under them, found {type(values).__name__}."
        )
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2e-5 as a string; here it is a number, as everybody means it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+|\.(?:inf|nan))$", re.X),
    list("-+0123456789."),
)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(
            f"{override!r} is not an override; write section.key=value, for example training.batch_size=16."
        )
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"{override!r}: the value is not valid YAML; put quotes around it.") from None
    place = values
    for part in parts[:-1]:
        child = place.get(part)
        place[part] = child = {} if child is None else child
        if not isinstance(child, dict):
            raise UserError(f"{override!r}: {part} is not a section; write section.key=value.")
        place = child
    place[parts[-1]] = value


def _explain(item: Any) -> str:
    """One problem of pydantic's list in words: the key, what is wrong, what would be right."""
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        owner = _section_at(path[:-1])
        return f"{key} is not a setting{nearest(path[-1], owner)} (known here: {', '.join(owner)})"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key}: {message}, not {item['input']!r}" if item["type"] != "value_error" else f"{key}: {message}"


def _section_at(path: Sequence[str]) -> list[str]:
    section: Any = Config
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def to_yaml(config: Config | None = None) -> str:
    """The settings as a commented YAML file; without an argument, the committed `sft_config.yaml`."""
    lines = [
        "# Settings of a run. Every value here is the default; override any on the command line: training.batch_size=16",
        "# Made by `mini-chat-gpt config` from the settings' own descriptions.",
    ]
    for name, section in (config or Config()).__dict__.items():
        lines += ["", f"# {Config.model_fields[name].description}", f"{name}:"]
        default_model = config is None and name == "model"
        for key, field in type(section).model_fields.items():
            value = getattr(section, key)
            if name == "model" and key == "preset":
                continue
            shown = yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).strip().removesuffix("\n...")
            # A preset decides the shape; the fields it stands for are shown, but left to it.
            lines += [f"  # {field.description}", f"  {'# ' if default_model else ''}{key}: {shown}"]
        if name == "model":
            at = len(lines) - 2 * (len(type(section).model_fields) - 1)
            preset = [
                "  # " + str(ModelSection.model_fields["preset"].description),
                f"  preset: {section.preset or 'null'}",
            ]
            lines[at:at] = preset
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(exclude_none=True)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
