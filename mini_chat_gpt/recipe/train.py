"""Train with a recipe, then compare the model with its base: prompts side by side, and held-out parts scored.

The results are before_after.md, for people, and results.json, with every reply and check, in the run's folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_chat_gpt.checkpoints.find import steps_of
from mini_chat_gpt.checkpoints.load import find_source, load_checkpoint
from mini_chat_gpt.common.device import pick_device
from mini_chat_gpt.common.files import atomic_write_text, free_name, write_json
from mini_chat_gpt.common.hub_names import name_of_model
from mini_chat_gpt.common.json_files import read_json
from mini_chat_gpt.common.page import shown_path
from mini_chat_gpt.common.resources import peak_memory
from mini_chat_gpt.common.signals import after_interruption
from mini_chat_gpt.common.terminal import StepProgress, format_duration, format_size, print_line
from mini_chat_gpt.config import Config
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.chat_dataset import nearest_prompts
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.evaluation.prompt_suite import Answers, Prompts, as_json, ask, show
from mini_chat_gpt.generation.text import Reply
from mini_chat_gpt.model import GPT
from mini_chat_gpt.recipe import results as presentation
from mini_chat_gpt.recipe.base import base_of, chats_of, check_base, check_other, system_for
from mini_chat_gpt.recipe.checklist import Checklist
from mini_chat_gpt.recipe.folder import Recipe
from mini_chat_gpt.recipe.score import Part, answer, require_libraries, score_part
from mini_chat_gpt.reports.before_after import FILE_NAME, before_after
from mini_chat_gpt.sft_train import train
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import TrainResult
from mini_chat_gpt.training.run import CONFIG
from mini_chat_gpt.training.run_folder import RESULT

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison needs besides the tuned model."""

    recipe: Recipe
    base: Path
    parts: Sequence[Part]
    chats: Sequence[Conversation]
    checklist: Checklist | None
    against: Sequence[str] = ()

    def models(self, tuned: Path) -> dict[str, Path]:
        """Name -> path of all models that reply, the base first and the tuned model last."""
        others = {name_of_model(path): Path(path) for path in self.against}
        return {BEFORE: self.base, **others, AFTER: tuned}


def prepare(recipe: Recipe, n: int | None = None) -> Comparison:
    """Read all that training and comparing need; `n` limits the records of each held-out part.

    Raises UserError for every mistake that can be found before training.
    """
    base = base_of(recipe.config)
    parts = [Part(spec, recipe.items(spec)[:n]) for spec in recipe.parts]
    require_libraries(parts)
    chats = chats_of(recipe.config)
    checklist = recipe.checklist()
    _try_checks(recipe.prompts, parts, checklist)
    check_base(recipe, base, parts, chats)
    for path in recipe.prompts.against:
        check_other(recipe, Path(path), parts)
    return Comparison(recipe, base, parts, chats, checklist, recipe.prompts.against)


def _try_checks(prompts: Prompts, parts: Sequence[Part], checklist: Checklist | None) -> None:
    """Judge an empty reply to each record: what the records or the checklist lack is reported now, not after training."""
    for part in parts:
        spec = part.spec.model_copy(update={"regex": None})
        nothing = [Reply("", (), "stop", 0)] * len(part.items)
        if "bleu" in spec.overlap:
            spec = spec.model_copy(
                update={"overlap": ["chrf"]}
            )  # needs the same keys, and says nothing about empty texts
        score_part(replace(part, spec=spec), {"": nothing}, prompts, checklist, [])


def run_recipe(recipe: Recipe, out: Console, n: int | None = None) -> TrainResult:
    """Train, let both models reply, compare. The result says why training stopped, if it did before its end."""
    comparison = prepare(recipe, n)
    sft = recipe.config.sft.model_copy(update={"pretrained_checkpoint": str(comparison.base)})
    result = train(recipe.config.model_copy(update={"sft": sft}))
    how_to_resume = f"The same recipe command with sft.resume_from={result.folder} resumes from here."
    if result.stopped:
        if steps_of(result.folder):
            out.print(how_to_resume, markup=False, soft_wrap=True)
        return result
    memory = format_size(peak_memory(pick_device(recipe.config.system.device)))
    with after_interruption(lambda: out.print(how_to_resume, markup=False, soft_wrap=True)):
        facts = [*_training_facts(comparison, result), f"peak memory until the end of training: {memory}"]
        write_comparison(comparison, result.folder, result.folder, facts, out)
    return result


def evaluate_recipe(
    recipe: Recipe, checkpoint: Path, out: Console, n: int | None = None, base_given: bool = False
) -> None:
    """Compare a model that exists with its base. The results are written to its run folder, if it has one.

    The base is that of the run, unless the user gave one; without a run, that of the recipe.
    """
    find_source(checkpoint)
    settings = checkpoint / CONFIG
    folder = checkpoint if settings.is_file() else free_name(Path("runs/reports") / recipe.name)
    if settings.is_file() and not base_given:
        recipe = replace(recipe, config=_with_base_of(recipe.config, load_config(settings, of_run=True)))
    comparison = prepare(recipe, n)
    facts = [f"after: {shown_path(checkpoint)}, trained before", *_seconds_of(checkpoint)]
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison(comparison, checkpoint, folder, facts, out)


def _with_base_of(config: Config, trained: Config) -> Config:
    """The settings with the base that a run began with."""
    base = trained.sft.pretrained_checkpoint
    return (
        config.model_copy(update={"sft": config.sft.model_copy(update={"pretrained_checkpoint": base})})
        if base
        else config
    )


def _seconds_of(run: Path) -> list[str]:
    if not (run / RESULT).is_file():
        return []
    result = read_json(run / RESULT, dict[str, float | None], "train again")
    return [f"training: {format_duration(result.get('seconds') or 0)} for {result.get('steps') or 0:,.0f} steps"]


def write_comparison(comparison: Comparison, tuned: Path, folder: Path, facts: Sequence[str], out: Console) -> None:
    """Let all models reply, print the results, and write before_after.md and results.json to `folder`."""
    recipe, started = comparison.recipe, time.monotonic()
    answers, replies, of_base = [], {}, ""
    models = comparison.models(tuned)
    for name, path in models.items():
        model, tokenizer = load_checkpoint(path, recipe.config.system.device)
        of_base = of_base or base_fact(comparison.base, model, tokenizer)
        compared, of_parts = _replies(name, model, tokenizer, comparison, out)
        answers.append(compared)
        replies[name] = of_parts
        del model  # the next one needs its memory
    seconds = time.monotonic() - started
    memory = format_size(peak_memory(pick_device(recipe.config.system.device)))
    pairs = [(_prompt(chat), chat.messages[-1].content) for chat in comparison.chats]
    results = [
        score_part(
            part, {name: of[number] for name, of in replies.items()}, recipe.prompts, comparison.checklist, pairs
        )
        for number, part in enumerate(comparison.parts)
    ]
    spent = f"replies of all models: {format_duration(seconds)}; peak memory: {memory}"
    facts = [of_base, *facts, "replies: greedy (temperature 0)", spent, *presentation.headline(results, AFTER)]
    facts.append(_nearest(recipe.prompts, comparison.chats))
    title = f"{recipe.name}: before and after"
    report = {"title": title, "facts": facts, "models": [{"name": name} for name in models]}
    text = before_after(report | {"own": as_json(recipe.prompts, *answers)})
    file = folder / FILE_NAME
    atomic_write_text(file, text + presentation.markdown(results, [*models]))
    values: dict[str, Any] = {
        "recipe": recipe.name,
        "base": shown_path(comparison.base),
        "facts": facts,
        "seconds": seconds,
    }
    write_json(folder / presentation.FILE_NAME, values | {"parts": results})
    show(recipe.prompts, answers, out)
    out.print()
    presentation.show_results(results, [*models], out)
    out.print(spent, markup=False, soft_wrap=True)
    out.print(f"With every reply: {file}", markup=False, soft_wrap=True)
    out.print(f"Chat with it: mini-chat-gpt chat --checkpoint {tuned}", markup=False, soft_wrap=True)


def _replies(
    name: str, model: GPT, tokenizer: ChatTokenizer, comparison: Comparison, out: Console
) -> tuple[Answers, list[list[Reply]]]:
    """One model's replies to the prompts that are shown, and to each held-out part."""
    system = system_for(comparison.recipe.config, tokenizer)
    n_records = sum(len(part.items) for part in comparison.parts)
    n_prompts = len(comparison.recipe.prompts.all)
    print_line(out, f"{name}: replies to {n_prompts} prompts and {n_records:,} held-out records …")
    compared = ask(name, model, tokenizer, comparison.recipe.prompts, system)
    replies, done = [], 0
    with StepProgress(out, f"{name}: replies", 0, max(1, n_records)) as progress:
        for part in comparison.parts:
            replies.append(answer(model, tokenizer, part, system, partial(_update, progress, done)))
            done += len(part.items)
            progress.update(done)
    return compared, replies


def _update(progress: StepProgress, before: int, n: int) -> None:
    """Show that `n` replies of a part are finished, and those of the parts `before` it."""
    progress.update(before + n)


def _prompt(chat: Conversation) -> str:
    """The text that a reply of a training conversation follows, without the system message."""
    return "\n\n".join(message.content for message in chat.messages[:-1] if message.role != "system")


def base_fact(base: Path, model: GPT, tokenizer: ChatTokenizer) -> str:
    """Description of the base model for the head of the report."""
    kind = (
        "a chat model" if tokenizer.chat_format is not None else "a base model, which continues each prompt as a text"
    )
    return f"before: {shown_path(base)}, {model.n_parameters() / 1e6:.2f} M parameters, {kind}"


def _training_facts(comparison: Comparison, result: TrainResult) -> list[str]:
    """Description of the training for the head of the report."""
    config = comparison.recipe.config
    how = f"adapters (LoRA) of rank {config.lora.rank}" if config.lora.enabled else "all weights"
    return [
        f"after: {how} trained on {len(comparison.chats):,} chats for {result.steps:,} steps in "
        f"{format_duration(result.seconds)}, learning rate {result.learning_rate:g}"
    ]


def _nearest(prompts: Prompts, chats: Sequence[Conversation]) -> str:
    """How similar the compared prompts are to the training data."""
    if not chats:
        return "no training data"
    share, prompt, question = max(nearest_prompts(prompts.all, chats))
    if share < 1:
        return f"none of the prompts is in the data; the most similar pair shares {share:.0%} of its words: “{prompt}” and “{question}”"
    return f"careful: “{prompt}” is in the data, as “{question}”"
