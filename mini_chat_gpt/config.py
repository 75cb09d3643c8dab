"""All settings of a run as one typed object. `config_file.py` makes it from a file and the command line; then it is passed in.

The docstring under each field is its only description: the comments of `sft_config.yaml` are generated from it
(`mini-chat-gpt config`). Nothing else in the package reads settings from `sys.argv`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mini_chat_gpt.common.errors import nearest
from mini_chat_gpt.gpt_config import GPTConfig as GPTConfig
from mini_chat_gpt.gpt_config import Section as Section


def seconds_in(duration: str) -> float:
    """ "2h", "90m", "45s", "1h30m" or "90" (seconds) in seconds. Raises ValueError for anything else, and for 0."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", duration.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    if (total := 3600 * hours + 60 * minutes + seconds) <= 0:
        raise ValueError(f"{duration!r} is not a duration; write for example 2h, 90m, 1h30m or 45s")
    return total


def _check_duration(duration: str) -> str:
    seconds_in(duration)
    return duration


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", name):
        raise ValueError(f"{name!r} is not a device; write auto, cpu, cuda, cuda:1 or mps")
    return name


Duration = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_check_duration)]

# Shapes by name. The comments give the number of parameters for a vocabulary size. With heads narrower than 64, small models
# learn to copy from the prompt later.
PRESETS: dict[str, dict[str, Any]] = {
    "1m": {"n_layer": 4, "n_head": 2, "n_embd": 128, "context_length": 512},  # 1.3 M with 4,096 entries
    "3m": {"n_layer": 5, "n_head": 3, "n_embd": 192, "context_length": 512},  # 3.0 M with 4,096
    "15m": {"n_layer": 6, "n_head": 6, "n_embd": 288, "context_length": 512},  # 15 M with 32,000
    "30m": {"n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 1024},  # 30 M with 50,304
    "124m": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context_length": 1024},  # 124 M with 50,304, GPT-2's shape
}


class ModelSection(GPTConfig):
    """The model to pretrain: a preset, with any field overridden. Fine-tuning uses the shape of its base model."""

    preset: str | None = "30m"
    """Shape by name: 1m, 3m, 15m, 30m or 124m (the size of GPT-2); null = only the fields set here."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("preset", cls.model_fields["preset"].default)
        if name is None:
            return values
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}{nearest(str(name), PRESETS)}")
        return PRESETS[name] | {"preset": name} | values

    def gpt_config(self, vocab_size: int) -> GPTConfig:
        """The architecture alone. `vocab_size` is used where the setting is 0."""
        fields = self.model_dump(exclude={"preset"})
        return GPTConfig(**fields | {"vocab_size": self.vocab_size or vocab_size})


def current_metric_name(name: str | None) -> str | None:
    """The name of a metric as it is now: "suite/moral/exact" of earlier versions is "eval/moral/exact"."""
    return f"eval/{name.removeprefix('suite/')}" if name is not None and name.startswith("suite/") else name


class ScheduleFields(Section):
    """Length, learning rate and evaluation of a training phase."""

    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(0.01, gt=0)
    """Peak learning rate of the matrices if training.optimizer is muon."""
    max_steps: int | None = Field(10000, ge=1)
    """Optimizer steps (null = computed from epochs)."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data; if set, max_steps is ignored."""
    warmup_steps: int = Field(500, ge=0)
    """Steps of linear warmup. A run that is not longer than this warms up over a tenth of its steps."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after warmup: cosine, linear, constant, or wsd (constant, then linear decay over the last decay_fraction)."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Fraction of the steps after warmup in which wsd decays."""
    final_lr_fraction: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak."""
    eval_interval: int = Field(500, ge=1)
    """Steps between evaluations."""
    save_interval: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    patience: int | None = Field(None, ge=1)
    """End the run after this many evaluations in a row without improvement (null = never)."""
    best_metric: str = "val_loss"
    """Metric that selects the best checkpoint: val_loss, or a score of the eval tasks such as eval/moral/exact."""
    prompts: list[str] = Field([])  # copied for each object; default_factory=list would slow down the class definition
    """Your own prompts; each evaluation shows replies to them and to held-out prompts."""
    batch_size: int | None = Field(None, ge=1)
    """Overrides training.batch_size for this phase (null = no override)."""
    examples_per_step: int | None = Field(None, ge=1)
    """Overrides training.examples_per_step for this phase (null = no override)."""
    tokens_per_step: int | None = Field(None, ge=1)
    """Overrides training.tokens_per_step for this phase (null = no override)."""


class SFTSection(ScheduleFields):
    """Supervised fine-tuning."""

    pretrained_checkpoint: str | None = None
    """Base model: a checkpoint or run folder, a llama2.c .bin, or nanoGPT's ckpt.pt (null = the newest base under runs/)."""
    dataset_path: str = "./TinyStories"
    """Folder with TinyStories-Instruct files (TinyStoriesInstruct-train.txt and -valid.txt), or one such file."""
    eval_tasks: int = Field(4, ge=0)
    """Held-out tasks of each kind that each evaluation generates replies for and scores (0 = none)."""
    save_dir: str = "runs/sft"
    """Run folder. If it already holds a run, the next free name is used (runs/sft-2, …)."""
    resume_from: str | None = None
    """Run or checkpoint folder to resume; auto = the newest unfinished run of save_dir (null = start a new run)."""


class PretrainSection(ScheduleFields):
    """Pretraining a base model on plain text."""

    dataset_path: str = "./TinyStories"
    """Folder or file with plain stories, or TinyStories-Instruct files (only their stories are used)."""
    tokenizer: str = "train"
    """"train" trains a byte-level BPE on the data; or the name of an encoding (gpt2), a .tiktoken file, or a folder."""
    tokenizer_vocab_size: int = Field(4096, ge=260)
    """Vocabulary size of a tokenizer trained here, including the four control tokens."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    save_dir: str = "runs/base"
    """Run folder. If it already holds a run, the next free name is used (runs/base-2, …)."""
    resume_from: str | None = None
    """Run or checkpoint folder to resume; auto = the newest unfinished run of save_dir (null = start a new run)."""


class TrainingSection(Section):
    """The training step, shared by pretraining and fine-tuning."""

    batch_size: int = Field(4, ge=1)
    """Examples per micro-batch of one process; this determines memory."""
    batch_tokens: int | None = Field(None, ge=1)
    """Maximum tokens per micro-batch of one process (null = no limit). A longer example gets a micro-batch of its own."""
    examples_per_step: int | None = Field(None, ge=1)
    """Examples per optimizer step over all processes (null = batch_size); gradient accumulation follows from it."""
    tokens_per_step: int | None = Field(None, ge=1)
    """Tokens per optimizer step over all processes, instead of examples_per_step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices inside the blocks and AdamW for the other parameters."""
    reset_optimizer: bool = False
    """When a run is resumed, discard the optimizer's state, for example to change the optimizer. Applies to one start only."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, applied to matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay rate for the mean of the gradients."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's decay rate for the mean of the squared gradients."""
    grad_clip: float = Field(1.0, ge=0)
    """Maximum gradient norm (0 = no clipping)."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights; the average is evaluated and saved as the model (null = none)."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, about a third more time."""
    max_nonfinite_steps: int = Field(5, ge=1)
    """End the run after this many steps in a row with a non-finite loss or gradient. Such steps never change the weights."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints to keep, in addition to the best one."""
    time_limit: Duration | None = None
    """Save and exit after this time, for example 2h or 90m (--time-limit). The run can be resumed later."""
    time_budget: Duration | None = None
    """Time a few steps first, then set the number of steps so that the run ends after about this time (--time-budget)."""


class CurriculumStage(Section):
    """A stage of training with easier examples. Fields that are not set are as in the data section and the phase's settings."""

    share: float = Field(gt=0, lt=1)
    """Fraction of the run's optimizer steps."""
    seq_len: int | None = Field(None, ge=16)
    """Maximum example length in tokens."""
    turns: int | None = Field(None, ge=1)
    """Maximum questions about one story."""
    prefix_branches: int | None = Field(None, ge=1)
    """Maximum conversations that share the encoding of a story."""
    mixture: dict[str, float] | None = None
    """Shares of the task kinds that differ from data.mixture."""
    answer_weight: float | None = Field(None, ge=0)
    """Loss weight of the answer tokens. The model learns to copy sooner without an extra weight."""
    prompt_weight: float | None = Field(None, ge=0)
    """Loss weight of all tokens outside the assistant's replies."""
    tokens_per_step: int | None = Field(None, ge=1)
    """Tokens per optimizer step."""
    weight_decay: float | None = Field(None, ge=0)
    """Weight decay. A high value makes the model learn to copy sooner, but hurts story quality if kept later."""

    def apply_to(self, data: DataSection) -> DataSection:
        """The data section during this stage."""
        changes = self.model_dump(include=set(DataSection.model_fields), exclude_none=True)
        return data.model_copy(update=changes | {"mixture": (data.mixture or {}) | (self.mixture or {})})


class DataSection(Section):
    """The training examples."""

    seq_len: int = Field(1024, ge=16)
    """Maximum example length in tokens, at most the model's context. Longer stories are shortened in the middle."""
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that prepare examples ahead (0 = the training process does it; auto = 1 if a CPU core is free)."""
    mixture: dict[str, float] | None = None
    """Share of each task kind among the examples, e.g. {summary: 2, moral: 1} (null = tuned defaults)."""
    loss_weights: dict[str, float] | None = None
    """Loss weight of each task kind's tokens (null = tuned defaults)."""
    answer_weight: float = Field(3.0, ge=0)
    """Minimum loss weight of tokens that decide whether a reply is right or that end it; for "Yes" and "No" it is a factor."""
    prompt_weight: float = Field(0.0, ge=0)
    """Loss weight of tokens outside the assistant's replies. 0 masks them (label -100); a small weight helps small models."""
    turns: int = Field(4, ge=1)
    """Maximum questions about one story in a training conversation. More questions spread the cost of encoding the story."""
    prefix_branches: int = Field(1, ge=1)
    """Maximum separate conversations about one story that share its encoding, if the story comes before the question."""
    curriculum: list[CurriculumStage] = Field([])
    """Easier stages before the main one, e.g. [{share: 0.2, seq_len: 96, mixture: {quote: 4}}]; share = fraction of the steps."""
    limit: int | None = Field(None, ge=1)
    """Use only this many records, from the beginning of the file (null = all)."""
    system_message: str | None = None
    """System message of every conversation, stored in the checkpoint's chat format (null = none)."""
    eval_examples: int = Field(400, ge=1)
    """Size of the fixed validation set."""

    def limited_to(self, context: int) -> DataSection:
        """The section with examples no longer than the model's context."""
        return self.model_copy(update={"seq_len": min(self.seq_len, context)})


def _file_weights(files: Any) -> Any:
    """One path or a list of paths as {path: 1}."""
    if isinstance(files, str):
        files = [files]
    return dict.fromkeys(files, 1.0) if isinstance(files, list) and all(isinstance(p, str) for p in files) else files


FileWeights = Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_file_weights)]


class ChatsSection(Section):
    """Your own chats to fine-tune on, instead of TinyStories-Instruct tasks or mixed with them."""

    files: FileWeights = Field({})
    """JSON or JSON Lines files, optionally gzipped: one, a list, or {file: weight}. Weight 2 uses each chat twice per epoch."""
    valid_files: FileWeights = Field({})
    """Held-out chats for validation (none = hold out a part of `files`)."""
    valid_share: float = Field(0.1, ge=0, lt=1)
    """Fraction of `files` that is held out, the same for the same seed (0 = validate on the training chats)."""
    train: Literal["all", "last"] = "all"
    """all = train on every reply; last = only on the last reply of a chat. A message with "train": false is never trained on."""
    skip_bad: bool = False
    """Skip unusable records and report them, instead of ending with an error (--skip-bad)."""
    stories: float = Field(0.0, ge=0, lt=1)
    """Share of examples that are TinyStories-Instruct tasks from sft.dataset_path, mixed with the chats."""


class LoraSettings(Section):
    """The adapter itself. The defaults are common values."""

    rank: int = Field(16, ge=1)
    """Rank of the update of each weight matrix."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout probability on the input of each adapter."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers to adapt, by name (q_proj) or pattern (layers.*.mlp.*); all-linear = every linear layer of the blocks."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which suits high ranks."""
    dora: bool = False
    """Train the norm of each output's weights separately from their direction (DoRA)."""


class LoraSection(LoraSettings):
    """LoRA adapters: train small matrices in addition to the frozen weights of the base model, and save only them."""

    enabled: bool = False
    """Train adapters instead of all weights."""
    frozen: Literal["auto", "float32", "bf16", "nf4"] = "auto"
    """Storage of the frozen linear layers: nf4 = 4 bits (QLoRA); auto = the precision of the matrix products, which is lossless."""


class SystemSection(Section):
    """Hardware and precision."""

    device: Annotated[str, AfterValidator(_check_device)] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    multi_gpu: bool = False
    """Require several processes: without torchrun, which starts them, the run ends with the command to type."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer state over torchrun's processes (FSDP2), for models too large for one GPU."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile: true, false, or auto (on a GPU, if the run is long enough to benefit)."""
    mixed_precision: bool | Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto or true: bf16 if the hardware is faster with it, fp16 on older GPUs; false or fp32: float32."""
    seed: int = 1337
    """Seed of the weights, the data order, the prompt templates and sampling."""
    threads: int | None = Field(None, ge=1)
    """CPU threads (null = PyTorch's default)."""


def _wandb_mode(mode: Any) -> Any:
    """The mode without differences in case and blanks, and without wandb's old names."""
    word = mode.strip().lower() if isinstance(mode, str) else mode
    return {"dryrun": "offline", "run": "online"}.get(word, word) if isinstance(word, str) else word


class WandbSection(Section):
    """Logging to wandb.ai. The run folder always has metrics.jsonl."""

    enabled: bool = True
    """Log to wandb. Without an account or network the run is logged offline in the run folder, without asking."""
    project: str = "mini_chat_gpt"
    """Project name."""
    name: str | None = None
    """Run name (null = the name of the run folder)."""
    mode: Annotated[Literal["auto", "online", "offline", "disabled"], BeforeValidator(_wandb_mode)] = "auto"
    """auto = online if there is an account and a network, else offline."""


class Config(Section):
    """All settings of a run. A section's description is the docstring of its class."""

    sft: SFTSection = SFTSection()
    pretrain: PretrainSection = PretrainSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    data: DataSection = DataSection()
    chats: ChatsSection = ChatsSection()
    lora: LoraSection = LoraSection()
    system: SystemSection = SystemSection()
    wandb: WandbSection = WandbSection()

    def step_size(self, phase: ScheduleFields) -> StepSize:
        """What an optimizer step of this phase consists of."""
        training = self.training
        batch_size = phase.batch_size or training.batch_size
        tokens = phase.tokens_per_step or (None if phase.examples_per_step else training.tokens_per_step)
        return StepSize(batch_size, phase.examples_per_step or training.examples_per_step or batch_size, tokens)


class StepSize(NamedTuple):
    """Size of an optimizer step over all processes."""

    batch_size: int  # examples per micro-batch
    examples: int
    tokens: int | None  # if set, used instead of `examples`
