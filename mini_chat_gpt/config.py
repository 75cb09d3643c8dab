"""One typed object for all settings, made at the edge (`config_file.py`), validated once, passed in.

The docstring under each field is its only description: the comments of `sft_config.yaml` and the command line's help are
generated from it (`mini-chat-gpt config`). Nothing deep inside reads an environment variable or `sys.argv`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mini_chat_gpt.common.errors import nearest


class Section(BaseModel):
    """Base of all sections: unknown keys are mistakes, docstrings are descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def seconds_in(duration: str) -> float:
    """ "2h", "90m", "45s", "1h30m" or "90" (seconds) in seconds. Raises ValueError for anything else, and for nothing at all."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", duration.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    if (total := 3600 * hours + 60 * minutes + seconds) <= 0:
        raise ValueError(f"{duration!r} is no length of time; write for example 2h, 90m, 1h30m or 45s")
    return total


def _is_duration(given: str) -> str:
    seconds_in(given)
    return given


Duration = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_is_duration)]


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
        if self.windows is not None and any(window is not None and window < 1 for window in self.windows):
            raise ValueError(
                "a window is 1 token or more (null: the whole context); with none there is nothing to attend to"
            )
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
    patience: int | None = Field(None, ge=1)
    """Evaluations in a row without a better one after which the run ends (null: it goes to its end)."""
    best_metric: str = "val_loss"
    """What makes an evaluation, and its checkpoint, the best one: val_loss, or a score of the suite such as suite/moral/exact."""
    prompts: list[str] = Field(default_factory=list)
    """Prompts of your own, replied to at each evaluation beside the held-out ones."""
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
    eval_tasks: int = Field(4, ge=0)
    """Held-out tasks of each kind that are replied to and scored at each evaluation (0: none)."""
    save_dir: str = "runs/sft"
    """Run folder. One that already holds a run is left alone: the next free name (runs/sft-2, …) is taken."""
    resume_from: str | None = None
    """Run or checkpoint folder to go on from; auto = save_dir's newest run that isn't finished (null = start anew)."""


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
    """Run or checkpoint folder to go on from; auto = save_dir's newest run that isn't finished (null = start anew)."""


class TrainingSection(Section):
    """The training step, shared by pretraining and fine-tuning."""

    batch_size: int = Field(4, ge=1)
    """Examples per micro-batch of one process: what is in memory at a time."""
    batch_tokens: int | None = Field(None, ge=1)
    """Most tokens per micro-batch of one process (null = any number); an example that is longer stands alone."""
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
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then evaluated and saved as the model (null = none)."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: less memory, a third more time."""
    max_nonfinite_steps: int = Field(5, ge=1)
    """Steps in a row with a non-finite loss or gradient (none of them changes the weights) after which the run ends."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay, beside the best."""
    time_limit: Duration | None = None
    """Save and leave after this time, for example 2h or 90m (--time-limit); the run can go on later."""
    time_budget: Duration | None = None
    """Time a few steps first, then set the number of steps so that the run ends after about this time (--time-budget)."""


class CurriculumStage(Section):
    """Steps with easier examples; what isn't given is as in the data section and the phase's own settings."""

    share: float = Field(gt=0, lt=1)
    """Its part of the run's optimizer steps."""
    seq_len: int | None = Field(None, ge=16)
    """Longest example in tokens."""
    turns: int | None = Field(None, ge=1)
    """Most questions about one story."""
    prefix_branches: int | None = Field(None, ge=1)
    """Most conversations that share the reading of a story."""
    mixture: dict[str, float] | None = None
    """Shares of the kinds that differ from data.mixture."""
    answer_weight: float | None = Field(None, ge=0)
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
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that prepare examples ahead (0: the training process makes them in between; auto: 1 where a core is left for it)."""
    mixture: dict[str, float] | None = None
    """Share of each task kind among the examples, e.g. {summary: 2, moral: 1}; null = the measured defaults."""
    loss_weights: dict[str, float] | None = None
    """Loss weight of each task kind's tokens; null = the measured defaults."""
    answer_weight: float = Field(3.0, ge=0)
    """Loss weight (at least) of tokens that end a reply or decide whether it is right; a factor on it for "Yes" and "No"."""
    prompt_weight: float = Field(0.0, ge=0)
    """Loss weight of what isn't the assistant's: 0 masks it (label -100); a little lets a small model learn from the stories it reads."""
    turns: int = Field(4, ge=1)
    """Most questions about one story in a training conversation; reading the story is most of the work."""
    prefix_branches: int = Field(1, ge=1)
    """Most conversations of their own about one story that share its reading: computed once, where the story comes before the question."""
    curriculum: list[CurriculumStage] = Field(default_factory=list)
    """Lessons before the others, easiest first, e.g. [{share: 0.2, seq_len: 96, mixture: {quote: 4}}]; share: of the run's steps."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many records (null = all)."""
    system_message: str | None = None
    """System message put before every conversation and stored in the checkpoint's chat format (null = none)."""
    eval_examples: int = Field(400, ge=1)
    """Size of the fixed validation set, each example once."""


def _weights_of_files(given: Any) -> Any:
    """One path or several as {path: 1}."""
    if isinstance(given, str):
        given = [given]
    return dict.fromkeys(given, 1.0) if isinstance(given, list) and all(isinstance(p, str) for p in given) else given


FileWeights = Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_weights_of_files)]


class ChatsSection(Section):
    """Chats of your own, to fine-tune on instead of TinyStories-Instruct tasks or mixed with them."""

    files: FileWeights = Field(default_factory=dict)
    """JSON or JSON Lines files, also gzipped: one, a list, or {file: weight}; a weight of 2 takes each chat twice an epoch."""
    valid_files: FileWeights = Field(default_factory=dict)
    """Held-out chats to validate on (none: a part of `files`)."""
    valid_share: float = Field(0.1, ge=0, lt=1)
    """The part of `files` that is held out, the same for the same seed (0: validate on what is trained on)."""
    train: Literal["all", "last"] = "all"
    """all: every reply is trained; last: only the last one of a chat. A message's "train": false leaves it out either way."""
    skip_bad: bool = False
    """Leave out records that can't be used, and say so, instead of ending there (--skip-bad)."""
    stories: float = Field(0.0, ge=0, lt=1)
    """Share of the examples that are TinyStories-Instruct tasks from sft.dataset_path, beside the chats."""


class LoraSettings(Section):
    """What an adapter is; the defaults are those of most recipes."""

    rank: int = Field(16, ge=1)
    """Rank of what is added to each weight matrix."""
    alpha: float = Field(32.0, gt=0)
    """What is added is scaled by alpha / rank."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Part of an adapter's inputs that is dropped in training."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers to adapt, by name (q_proj) or pattern (layers.*.mlp.*); all-linear: every linear layer of the blocks."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which suits high ranks."""
    dora: bool = False
    """Train the length of each output's weights apart from their direction (DoRA)."""


class LoraSection(LoraSettings):
    """Adapters: train small matrices beside the frozen weights of the base, and save only them."""

    enabled: bool = False
    """Train adapters instead of all weights."""
    frozen: Literal["auto", "float32", "bf16", "nf4"] = "auto"
    """How the base's linear layers are kept: nf4 in 4 bits (QLoRA), auto in the precision of the products, which loses nothing."""


class SystemSection(Section):
    """The machine."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    multi_gpu: bool = False
    """Insist on several processes: without torchrun, which decides how many, the line to type is printed."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer over torchrun's processes (FSDP2), for models that don't fit on one GPU."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile: true, false, or auto (on a GPU where the run is long enough to pay for it)."""
    mixed_precision: bool | Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto (true means the same): bf16 where the hardware is faster with it, fp16 on older GPUs; false or fp32: float32."""
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
    chats: ChatsSection = ChatsSection()
    """Chats of your own, to fine-tune on instead of TinyStories-Instruct tasks or mixed with them."""
    lora: LoraSection = LoraSection()
    """Adapters: train small matrices beside the frozen weights of the base, and save only them."""
    system: SystemSection = SystemSection()
    """The machine."""
    wandb: WandbSection = WandbSection()
    """Monitoring at wandb.ai; metrics.jsonl in the run folder is always written."""

    def step_size(self, phase: ScheduleFields) -> StepSize:
        """What an optimizer step of this phase is made of."""
        training = self.training
        batch_size = phase.batch_size or training.batch_size
        tokens = phase.tokens_per_step or (None if phase.examples_per_step else training.tokens_per_step)
        return StepSize(batch_size, phase.examples_per_step or training.examples_per_step or batch_size, tokens)


class StepSize(NamedTuple):
    """Of an optimizer step, over all processes."""

    batch_size: int  # examples of a micro-batch
    examples: int
    tokens: int | None  # where given, they decide instead of examples
