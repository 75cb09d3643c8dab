"""The end of a fine-tuning run on chats: how the model replies to a few of the chats that were held out.

It takes seconds: a few replies, generated until the time is up. `mini-chat-gpt evaluate` scores all of them, with intervals.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mini_chat_gpt.common.entry import command_of
from mini_chat_gpt.common.terminal import text_table
from mini_chat_gpt.common.text import clean
from mini_chat_gpt.config import ChatsSection
from mini_chat_gpt.evaluation.capabilities import Item, evaluate, summarize
from mini_chat_gpt.evaluation.chat_tasks import CHATS, ChatTask, make_tasks
from mini_chat_gpt.evaluation.held_out_chats import sources_of
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.model import GPT
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.training.job import TrainResult
from mini_chat_gpt.training.sft_data import ChatData

N_REPLIES, N_SHOWN = 12, 3
AT_ONCE = 4  # replies that are generated together
MAX_SECONDS = 15.0
"""No further replies are begun after this time."""
MAX_TOKENS = 128
"""Chats with shorter replies are preferred, and replies are cut off at twice this length."""
_LONGEST = 240  # characters of a text


def reply_to_held_out_chats(
    chats: ChatData, section: ChatsSection, model: GPT, tokenizer: ChatTokenizer, seed: int
) -> Callable[[Model, TrainResult], RenderableType | None]:
    """A function that shows how the model replies to some held-out chats after training; None if it trained on all of them.

    `model` says what fits into the context.
    """

    def summarized(trained: Model, result: TrainResult) -> RenderableType | None:
        if chats.held_out is None:
            return None
        only_last, models = section.train == "last", [(model, tokenizer)]
        tasks = [
            task
            for read in sources_of(chats, section).values()
            for task in make_tasks(read(), models, N_REPLIES, seed, only_last=only_last)
        ]
        # Long replies take long. What is cut off says little about a model.
        short_first = sorted(tasks, key=lambda task: len(tokenizer.encode(task.target)) > MAX_TOKENS)
        items = _replies(trained, tokenizer, short_first[:N_REPLIES])
        # With stories, the loss over all validation examples is not that of the chats.
        return _shown(items, result, None if section.stories else result.val_losses.get("val_loss")) if items else None

    return summarized


def _replies(model: Model, tokenizer: ChatTokenizer, tasks: Sequence[ChatTask]) -> list[Item]:
    started, items = time.monotonic(), list[Item]()
    for start in range(0, len(tasks), AT_ONCE):
        if start and time.monotonic() - started > MAX_SECONDS:
            break
        some = tasks[start : start + AT_ONCE]
        items += evaluate(model, tokenizer, some, Sampling(temperature=0, max_new_tokens=2 * MAX_TOKENS)).items
    return items


def _shown(items: Sequence[Item], result: TrainResult, loss: float | None) -> Group:
    """A table with a row of scores, some replies next to the expected ones, and the command for all of them."""
    scores = summarize(items)[CHATS]
    shares = [f"{100 * scores[name]:.0f} %" for name in ("stops", "length", "exact_match", "rouge_l", "chrf")]
    heads = ["held-out chats", "stops", "length", "exact match", "ROUGE-L", "chrF", *(["loss of all"] if loss else [])]
    row = [f"{len(items)} replies", *shares, *([f"{loss:.3f}"] if loss else [])]
    command = f"{command_of('evaluate')} --checkpoint {shlex.quote(str(result.folder))}"
    note = Text(f"All held-out chats, with intervals: {command}", overflow="fold")
    return Group("", text_table([heads, row]), *map(_beside_expected, items[:N_SHOWN]), note)


def _beside_expected(item: Item) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    texts = {"prompt": item.task.prompt, "expected": item.task.target, "reply": item.reply or "(nothing)"}
    for name, content in texts.items():
        text = Text(" ".join(clean(content).split()))
        text.truncate(_LONGEST, overflow="ellipsis")
        table.add_row(name, text)
    table.add_row()
    return table
