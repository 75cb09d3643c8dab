"""All settings of a run as one typed object. `config_file.py` makes it from a file and the command line; then it is passed in.

The docstring under each field is its only description: the comments of `sft_config.yaml` are generated from it
(`mini-chat-gpt config`). Nothing else in the package reads settings from `sys.argv`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from mini_chat_gpt.common.errors import UserError, nearest, short
from mini_chat_gpt.common.setting_types import (
    MAX_COUNT,
    BatchSize,
    BatchTokens,
    ChatKeys,
    Count,
    Device,
    Duration,
    FileWeights,
    LayerNames,
    Name,
    Number,
    PathText,
    Seed,
    TextList,
    Weight,
    Whole,
)
from mini_chat_gpt.common.setting_types import seconds_in as seconds_in
from mini_chat_gpt.gpt_config import MAX_CONTEXT, MAX_VOCAB
from mini_chat_gpt.gpt_config import GPTConfig as GPTConfig
from mini_chat_gpt.gpt_config import Section as Section

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
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset {short(name)} is not one of {', '.join(PRESETS)}{nearest(str(name), PRESETS)}")
        return PRESETS[name] | {"preset": name} | values

    def gpt_config(self, vocab_size: int) -> GPTConfig:
        """The architecture alone. The tokenizer's `vocab_size` is used where the setting is 0. Raises UserError if it is too small."""
        if 0 < self.vocab_size < vocab_size:
            raise UserError(
                f"model.vocab_size is {self.vocab_size}, but the tokenizer has {vocab_size} ids; set it to 0, which means that number, "
                "or to more."
            )
        if vocab_size > MAX_VOCAB:
            raise UserError(f"The tokenizer has {vocab_size:,} ids; a model has at most {MAX_VOCAB:,}.")
        fields = self.model_dump(exclude={"preset"})
        return GPTConfig(**fields | {"vocab_size": self.vocab_size or vocab_size})


def current_metric_name(name: str | None) -> str | None:
    """The name of a metric as it is now: "suite/moral/exact" of earlier versions is "eval/moral/exact"."""
    return f"eval/{name.removeprefix('suite/')}" if name is not None and name.startswith("suite/") else name


class ScheduleFields(Section):
    """Length, learning rate and evaluation of a training phase."""

    learning_rate: Annotated[Number, Field(gt=0, le=10)] | Literal["auto"] = "auto"
    """Peak learning rate of AdamW (auto = chosen by the number of trained parameters, and whether they are an adapter's)."""
    muon_lr: Number = Field(0.01, gt=0, le=10)
    """Peak learning rate of the matrices if training.optimizer is muon."""
    max_steps: Count | Literal["auto"] | None = "auto"
    """Optimizer steps (auto = 10,000 on stories, 3 epochs on chats; null = computed from epochs)."""
    epochs: Number | None = Field(None, gt=0, le=1e6)
    """Passes over the data; if set, max_steps is ignored."""
    warmup_steps: Annotated[Whole, Field(ge=0, le=MAX_COUNT)] | Literal["auto"] = "auto"
    """Steps of linear warmup (auto = a tenth of the steps, at most 500). If there are not more steps, it is a tenth of them."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after warmup: cosine, linear, constant, or wsd (constant, then linear decay over the last decay_fraction)."""
    decay_fraction: Number = Field(0.2, ge=1e-6, le=1)
    """Fraction of the steps after warmup in which wsd decays."""
    final_lr_fraction: Number = Field(0.1, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak."""
    eval_interval: Count = 500
    """Steps between evaluations."""
    save_interval: Count = 1000
    """Steps between checkpoints."""
    patience: Count | None = None
    """End the run after this many evaluations in a row without improvement (null = never)."""
    best_metric: Name = "val_loss"
    """Metric that selects the best checkpoint: val_loss, or a score of the eval tasks such as eval/moral/exact."""
    prompts: TextList = Field([])  # copied for each object; default_factory=list would slow down the class definition
    """Your own prompts; each evaluation shows replies to them and to held-out prompts."""
    batch_size: BatchSize | None = None
    """Overrides training.batch_size for this phase (null = no override)."""
    examples_per_step: BatchSize | None = None
    """Overrides training.examples_per_step for this phase (null = no override)."""
    tokens_per_step: BatchTokens | None = None
    """Overrides training.tokens_per_step for this phase (null = no override)."""


class SFTSection(ScheduleFields):
    """Supervised fine-tuning."""

    pretrained_checkpoint: PathText | None = None
    """Base model: a checkpoint or run, a Hugging Face folder, hub:org/name, or a model file (null = the newest base under runs/)."""
    chat_format: PathText = "auto"
    """auto = the base model's own format, ours if it has none; mini = ours; chatml; or the path of a Jinja chat template."""
    dataset_path: PathText = "./TinyStories"
    """TinyStories-Instruct files (TinyStoriesInstruct-train.txt and -valid.txt): their folder, hub:org/name, or one of them."""
    eval_tasks: Whole = Field(4, ge=0, le=MAX_COUNT)
    """Held-out tasks of each kind that each evaluation generates replies for and scores (0 = none)."""
    save_dir: PathText = "runs/sft"
    """Run folder. If it already holds a run, the next free name is used (runs/sft-2, …)."""
    resume_from: PathText | None = None
    """Run or checkpoint folder to resume; auto = the newest unfinished run of save_dir (null = start a new run)."""


class PretrainSection(ScheduleFields):
    """Pretraining a base model on plain text."""

    dataset_path: PathText = "./TinyStories"
    """Text files, records with a "text" (JSON, CSV, Parquet), or stories: a file, folder, pattern, hub:org/name, or several: a.txt,b."""
    documents: Literal["auto", "blank_lines", "lines", "files"] = "auto"
    """Where a text is divided: auto = at the separator, and a file without one is a document; blank_lines, lines, or files = never."""
    separator: str = Field("<|endoftext|>", min_length=1, max_length=100)
    """Text between documents, for documents=auto."""
    tokenizer: PathText = "train"
    """"train" trains a byte-level BPE on the data; or an encoding (gpt2), a .tiktoken file, or a model (folder, run, hub:org/name)."""
    tokenizer_vocab_size: Whole = Field(4096, ge=260, le=2**20)
    """Vocabulary size of a tokenizer trained here, including the four control tokens."""
    learning_rate: Annotated[Number, Field(gt=0, le=10)] | Literal["auto"] = 1e-3
    """Peak learning rate of AdamW (auto = chosen by the number of parameters)."""
    max_steps: Count | Literal["auto"] | None = 10000
    """Optimizer steps (auto = 10,000; null = computed from epochs)."""
    save_dir: PathText = "runs/base"
    """Run folder. If it already holds a run, the next free name is used (runs/base-2, …)."""
    resume_from: PathText | None = None
    """Run or checkpoint folder to resume; auto = the newest unfinished run of save_dir (null = start a new run)."""


class TrainingSection(Section):
    """The training step, shared by pretraining and fine-tuning."""

    batch_size: BatchSize = 4
    """Examples per micro-batch of one process; this determines memory."""
    batch_tokens: BatchTokens | None = None
    """Maximum tokens per micro-batch of one process (null = no limit). A longer example gets a micro-batch of its own."""
    examples_per_step: BatchSize | None = None
    """Examples per optimizer step over all processes (null = batch_size); gradient accumulation follows from it."""
    tokens_per_step: BatchTokens | None = None
    """Tokens per optimizer step over all processes, instead of examples_per_step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices inside the blocks and AdamW for the other parameters."""
    reset_optimizer: bool = False
    """When a run is resumed, discard the optimizer's state, for example to change the optimizer. Applies to one start only."""
    weight_decay: Number = Field(0.01, ge=0, le=10)
    """Decoupled weight decay, applied to matrices only."""
    beta1: Number = Field(0.9, ge=0, lt=1)
    """AdamW's decay rate for the mean of the gradients."""
    beta2: Number = Field(0.95, ge=0, lt=1)
    """AdamW's decay rate for the mean of the squared gradients."""
    grad_clip: Number = Field(1.0, ge=0, le=1e6)
    """Maximum gradient norm (0 = no clipping)."""
    ema: Number | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights; the average is evaluated and saved as the model (null = none)."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, about a third more time."""
    max_nonfinite_steps: Count = 5
    """End the run after this many steps in a row with a non-finite loss or gradient. Such steps never change the weights."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep, in addition to the best one."""
    time_limit: Duration | None = None
    """Save and exit after this time, for example 2h or 90m (--time-limit). The run can be resumed later."""
    time_budget: Duration | None = None
    """Time a few steps first, then set the number of steps so that the run ends after about this time (--time-budget)."""


class CurriculumStage(Section):
    """A stage of training with easier examples. Fields that are not set are as in the data section and the phase's settings."""

    share: Number = Field(gt=0, lt=1)
    """Fraction of the run's optimizer steps."""
    seq_len: Whole | None = Field(None, ge=16, le=MAX_CONTEXT)
    """Maximum example length in tokens."""
    turns: Whole | None = Field(None, ge=1, le=1000)
    """Maximum questions about one story."""
    prefix_branches: Whole | None = Field(None, ge=1, le=1000)
    """Maximum conversations that share the encoding of a story."""
    mixture: dict[str, Weight] | None = None
    """Shares of the task kinds that differ from data.mixture."""
    answer_weight: Weight | None = None
    """Loss weight of the answer tokens. The model learns to copy sooner without an extra weight."""
    prompt_weight: Weight | None = None
    """Loss weight of all tokens outside the assistant's replies."""
    tokens_per_step: BatchTokens | None = None
    """Tokens per optimizer step."""
    weight_decay: Number | None = Field(None, ge=0, le=10)
    """Weight decay. A high value makes the model learn to copy sooner, but hurts story quality if kept later."""

    def apply_to(self, data: DataSection) -> DataSection:
        """The data section during this stage."""
        changes = self.model_dump(include=set(DataSection.model_fields), exclude_none=True)
        return data.model_copy(update=changes | {"mixture": (data.mixture or {}) | (self.mixture or {})})


class DataSection(Section):
    """The training examples."""

    seq_len: Whole = Field(1024, ge=16, le=MAX_CONTEXT)
    """Maximum example length in tokens, at most the model's context. Longer stories are shortened in the middle."""
    num_workers: Annotated[Whole, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Processes that prepare examples ahead (0 = the training process does it; auto = 1 if a CPU core is free)."""
    mixture: dict[str, Weight] | None = None
    """Share of each task kind among the examples, e.g. {summary: 2, moral: 1} (null = tuned defaults)."""
    loss_weights: dict[str, Weight] | None = None
    """Loss weight of each task kind's tokens, and of kinds of turns of data.conversations (null = tuned defaults)."""
    answer_weight: Weight = 3.0
    """Minimum loss weight of tokens that decide whether a reply is right or that end it; for "Yes" and "No" it is a factor."""
    prompt_weight: Weight = 0.0
    """Loss weight of tokens outside the assistant's replies. 0 masks them (label -100); a small weight helps small models."""
    turns: Whole = Field(4, ge=1, le=1000)
    """Maximum questions about one story in a training conversation. More questions spread the cost of encoding the story."""
    prefix_branches: Whole = Field(1, ge=1, le=1000)
    """Maximum separate conversations about one story that share its encoding, if the story comes before the question."""
    conversations: float = Field(0.0, ge=0, lt=1)
    """Share of examples that are whole conversations about stories: greetings, who are you, a story alone, then questions about it."""
    curriculum: list[CurriculumStage] = Field([])
    """Easier stages before the main one, e.g. [{share: 0.2, seq_len: 96, mixture: {quote: 4}}]; share = fraction of the steps."""
    limit: Count | None = None
    """Use only this many records, from the beginning of the file (null = all)."""
    system_message: str | None = None
    """System message of conversations without one, stored in the chat format (null = that of the model's template; "" = none)."""
    eval_examples: Count = 400
    """Size of the fixed validation set."""

    def limited_to(self, context: int) -> DataSection:
        """The section with examples no longer than the model's context."""
        return self.model_copy(update={"seq_len": min(self.seq_len, context)})


class ChatsSection(Section):
    """Your own chats to fine-tune on, instead of TinyStories-Instruct tasks or mixed with them."""

    files: FileWeights = Field({})
    """Chats (JSON, CSV, YAML, Parquet, Arrow): files, folders, patterns (data/*.jsonl), hub:org/name: one, a list, or {path: weight}."""
    valid_files: FileWeights = Field({})
    """Held-out chats for validation (none = the validation split in a folder of `files`, or else a part of `files`)."""
    valid_share: Number = Field(0.1, ge=0, lt=1)
    """Fraction of `files` without a validation split that is held out, the same for the same seed (0 = validate on the training chats)."""
    train: Literal["all", "last"] = "all"
    """all = train on every reply; last = only on the last reply of a chat. A message with "train": false is never trained on."""
    keys: ChatKeys = Field({})
    """Names of keys in your files, if they are not the usual ones: {response: bot_text} (ours: yours; null = that key is not read)."""
    too_long: Literal["cut", "shorten", "drop"] = "cut"
    """What to do with a chat longer than data.seq_len: cut it into several between exchanges, shorten it at its end, or drop it."""
    skip_bad: bool = False
    """Skip unusable records and report them, instead of ending with an error (--skip-bad)."""
    stories: Number = Field(0.0, ge=0, le=0.999)
    """Share of examples that are TinyStories-Instruct tasks from sft.dataset_path, mixed with the chats."""


class LoraSettings(Section):
    """The adapter itself. The defaults are common values."""

    rank: Whole = Field(16, ge=1, le=1024)
    """Rank of the update of each weight matrix."""
    alpha: Number = Field(32.0, gt=0, le=1e5)
    """The update is scaled by alpha / rank."""
    dropout: Number = Field(0.1, ge=0, le=0.99)
    """Dropout probability on the input of each adapter."""
    targets: LayerNames = ("all-linear",)
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

    device: Device = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    multi_gpu: bool = False
    """Require several processes: without torchrun, which starts them, the run ends with the command to type."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer state over torchrun's processes (FSDP2), for models too large for one GPU."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile: true, false, or auto (on a GPU, if the run is long enough to benefit)."""
    mixed_precision: bool | Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto or true: bf16 if the hardware is faster with it, fp16 on older GPUs; false or fp32: float32."""
    seed: Seed = 1337
    """Seed of the weights, the data order, the prompt templates and sampling."""
    threads: Whole | None = Field(None, ge=1, le=1024)
    """CPU threads, also while others use the cores (null = PyTorch's default, fewer while fewer are faster with the same results)."""


def _wandb_mode(mode: Any) -> Any:
    """The mode without differences in case and blanks, and without wandb's old names."""
    word = mode.strip().lower() if isinstance(mode, str) else mode
    return {"dryrun": "offline", "run": "online"}.get(word, word) if isinstance(word, str) else word


class WandbSection(Section):
    """Logging to wandb.ai. The run folder always has metrics.jsonl."""

    enabled: bool = True
    """Log to wandb: offline, in the run folder, unless the mode says online."""
    project: Name = "mini_chat_gpt"
    """Project name."""
    name: Name | None = None
    """Run name (null = the name of the run folder)."""
    mode: Annotated[Literal["auto", "online", "offline", "disabled"], BeforeValidator(_wandb_mode)] = "auto"
    """auto = what WANDB_MODE or `wandb online` says, else offline."""


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
