"""What the notebooks share: the small model of the course, the check of an exercise, and two displays.

The model is made once and kept in `runs/course`, next to the notebooks. `course.yaml` has its settings. `python course.py` makes it.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from IPython.display import HTML, Image
from matplotlib.figure import Figure

from mini_chat_gpt import load_checkpoint, train
from mini_chat_gpt.config import Config
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.batch_dump import token_pieces
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.model import GPT
from mini_chat_gpt.prepare.sample_stories import write_sample
from mini_chat_gpt.pretrain import pretrain
from mini_chat_gpt.tokenizer import ChatTokenizer
from mini_chat_gpt.training.run_folder import is_finished

FOLDER = Path("runs/course")
DATA = FOLDER / "data"
VALID = DATA / "TinyStoriesInstruct-valid.txt"
TRAIN_STORIES, VALID_STORIES = 3000, 600


def settings() -> Config:
    """The settings of the course."""
    return load_config("course.yaml")


def make_data() -> Path:
    """The folder with the generated stories, which are written once."""
    if not VALID.is_file():
        print(f"Writing {TRAIN_STORIES:,} stories to {DATA.as_posix()} …")
        write_sample(DATA, TRAIN_STORIES, VALID_STORIES)
    return DATA


def base() -> tuple[GPT, ChatTokenizer]:
    """The base model, which only continues text."""
    make_data()
    return _made_once("base", pretrain)


def tuned() -> tuple[GPT, ChatTokenizer]:
    """The fine-tuned model, which answers questions about stories."""
    if not is_finished(FOLDER / "base"):
        base()
    return _made_once("tuned", train)


def _made_once(name: str, job: Callable[[Config], Any]) -> tuple[GPT, ChatTokenizer]:
    folder = FOLDER / name
    if is_finished(folder):
        print(f"Found the {name} model of the course in {folder.as_posix()}.")
    else:
        print(
            f"Training the {name} model of the course, once. The notebooks find it in {folder.as_posix()} afterwards."
        )
        job(settings())
    model, tokenizer = load_checkpoint(folder)
    return model.eval(), tokenizer


@contextmanager
def check() -> Iterator[None]:
    """Print whether the assertions of an exercise hold: "Right." or "Not yet: …"."""
    try:
        yield
    except AssertionError as error:
        print(f"Not yet: {error}")
    except Exception as error:  # unfinished code fails in any way
        print(f"Not yet: {type(error).__name__}: {error}")
    else:
        print("Right.")


def in_color(ids: Sequence[int], loss_mask: Sequence[bool], tokenizer: ChatTokenizer) -> HTML:
    """The tokens of a conversation, with the supervised ones on green and control tokens in bold."""
    example = Example(np.array(ids, dtype=np.int32), np.array(loss_mask, dtype=bool), 1.0, "shown")
    cells = []
    for piece in token_pieces(example, tokenizer):
        color = "#b7e4c7" if piece.is_target else "#e9ecef"
        weight = "bold" if piece.is_control else "normal"
        text = html.escape(piece.text).replace(" ", "·").replace("\n", "↵")
        style = f"background: {color}; color: #111; font-weight: {weight}; padding: 1px 3px; margin: 1px"
        cells.append(f'<span style="{style}; display: inline-block; border-radius: 3px">{text}</span>')
    return HTML(f'<div style="font-family: monospace; line-height: 1.7">{"".join(cells)}</div>')


def picture(figure: Figure) -> Image:
    """A figure as a picture that is readable on light and dark pages."""
    data = BytesIO()
    figure.savefig(data, format="png", dpi=80, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return Image(data.getvalue())


if __name__ == "__main__":
    tuned()
