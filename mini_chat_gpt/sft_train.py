"""Supervised fine-tuning: from a base model to one that answers. `python mini_chat_gpt/sft_train.py [section.key=value ...]`.

Only what the assistant says is trained; the rest of each conversation is context.
"""

from __future__ import annotations

from collections.abc import Sequence

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoint import load_checkpoint, load_model, newest_checkpoint
from mini_chat_gpt.config import Config, DataSection
from mini_chat_gpt.entry import exit_with
from mini_chat_gpt.errors import UserError
from mini_chat_gpt.generation import generate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.runs import Prepared, Start, begin, execute, run_command
from mini_chat_gpt.sft_dataloader import InstructSource, RecordIndex, Task, find_instruct_file
from mini_chat_gpt.tokenizer import ChatTokenizer
from mini_chat_gpt.trainer import Callback, Job, Stage, TrainResult


def train(config: Config, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Fine-tune as the config's `sft`, `data` and `training` sections say; returns where the run lies and its losses.

    `callbacks` are called on rank 0 with (trainer, step, metrics) whenever metrics are recorded.
    """
    start = begin(config, config.sft)
    return execute(prepare(config, start), config, start, callbacks)


def prepare(config: Config, start: Start) -> Prepared:
    """Base model, examples and sample prompts."""
    if checkpoint := start.place.checkpoint:
        model, tokenizer = load_model(checkpoint), ChatTokenizer.load(checkpoint)
    else:
        model, tokenizer = load_base(config, start)
    context = model.config.context_length
    with start.world.first_on_each_machine():  # the first use of a file indexes it
        source, held_out = make_sources(config, tokenizer, context)
    tasks = held_out.show_tasks()
    prompts = [*config.sft.prompts, *(task.prompt for task in tasks)]

    def show(trained: GPT) -> str:
        replies = generate(trained, tokenizer, prompts, max_new_tokens=80, temperature=0.0)
        own = len(config.sft.prompts)
        lines = [
            f"  {_short(prompt, 80)} → {_short(reply, 160)}"
            for prompt, reply in zip(prompts[:own], replies, strict=False)
        ]
        return "\n".join(lines + [sample_line(task, reply) for task, reply in zip(tasks, replies[own:], strict=True)])

    validation = held_out.validation_examples(config.data.eval_examples)
    stages = make_stages(source, config, context)
    files = (source.index.path, held_out.index.path)
    return Prepared(Job("sft", config.sft, source, validation, show, stages, files), model, tokenizer)


def load_base(config: Config, start: Start) -> tuple[GPT, ChatTokenizer]:
    """The base model, made ready for the chat format."""
    path = config.sft.pretrained_checkpoint or start.world.share(lambda: newest_checkpoint(base=True))
    if path is None:
        raise UserError(
            "There is no base model under runs/ to fine-tune; make one with `mini-chat-gpt pretrain`, "
            "or name one: sft.pretrained_checkpoint=PATH."
        )
    model, tokenizer = load_checkpoint(path, "cpu")
    added = add_chat_tokens(model, tokenizer)
    tokenizer.chat_format = ChatFormat(default_system=config.data.system_message)
    start.out.print(
        f"Base model: {path}" + (f"; added control tokens {', '.join(added)}" if added else ""), markup=False
    )
    return model.train(), tokenizer


def add_chat_tokens(model: GPT, tokenizer: ChatTokenizer) -> list[str]:
    """Give a base the control tokens it lacks, their rows at the mean embedding; returns their names."""
    known = set(tokenizer.control)
    new_ids = tokenizer.add_control_tokens()
    model.resize_vocabulary(tokenizer.vocab_size)
    if new_ids:  # a padded table has rows for them already, which hold nothing yet
        model.set_rows_to_mean(new_ids)
    return [name for name in tokenizer.control if name not in known]


def make_sources(config: Config, tokenizer: ChatTokenizer, context: int) -> tuple[InstructSource, InstructSource]:
    """Training and held-out examples of the Instruct files; nothing of the held-out file is ever trained on."""
    data, seed = config.data, config.system.seed
    file, held_out = (find_instruct_file(config.sft.dataset_path, split) for split in ("train", "valid"))
    all_records = data if file == held_out else data.model_copy(update={"limit": None})
    return (
        make_source(RecordIndex(file), data, tokenizer, context, seed),
        make_source(RecordIndex(held_out), all_records, tokenizer, context, seed),
    )


def make_source(
    index: RecordIndex, data: DataSection, tokenizer: ChatTokenizer, context: int, seed: int
) -> InstructSource:
    """Examples of one file, as the data section has them."""
    return InstructSource(
        index,
        tokenizer,
        seq_len=min(data.seq_len, context),
        seed=seed,
        shares=data.shares,
        weights=data.weights,
        system=data.system_message,
        limit=data.limit,
        focus=data.focus,
        prompt_weight=data.prompt_weight,
        turns=data.turns,
        branches=data.branches,
    )


def make_stages(source: InstructSource, config: Config, context: int) -> list[Stage]:
    """The lessons of data.curriculum, on the records of `source`. Raises UserError where they leave nothing to the rest."""
    if (together := sum(lesson.share for lesson in config.data.curriculum)) >= 1:
        raise UserError(
            f"The lessons of data.curriculum have {together:.2f} of the run's steps together; give them less than 1."
        )
    stages = []
    for lesson in config.data.curriculum:
        given = lesson.model_dump(include={"seq_len", "turns", "branches", "focus", "prompt_weight"}, exclude_none=True)
        shares = (config.data.shares or {}) | (lesson.shares or {})
        data = config.data.model_copy(update=given | {"shares": shares})
        easier = make_source(source.index, data, source.tokenizer, context, config.system.seed)
        stages.append(Stage(lesson.share, easier, lesson.tokens_per_step, lesson.weight_decay))
    return stages


def sample_line(task: Task, reply: str) -> str:
    """One held-out prompt and its reply, short enough to read in passing."""
    return f"  [{task.kind}] {_short(reply, 160)}   (expected: {_short(task.target, 80)})"


def _short(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run_command(argv, "Fine-tune a base model on TinyStories-Instruct tasks.", train, "sft")


if __name__ == "__main__":
    exit_with(main)
