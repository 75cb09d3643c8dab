"""Write the page of all settings: `python docs/settings_page.py > docs/settings.md`. A test compares the file with this output."""

# ruff: noqa: E501 (rows of Markdown tables)

from __future__ import annotations

import sys

import yaml

from mini_chat_gpt.cli import VERBS, make_parser
from mini_chat_gpt.config import Config, ModelSection
from mini_chat_gpt.config_file import descriptions, plain_value

INTRODUCTION = """\
# Settings

<!-- Written by `python docs/settings_page.py > docs/settings.md`. -->

Every setting has a name such as `training.batch_size`. Give it on the command line, or in a YAML file with `--config FILE`; the command line wins.
Without `--config`, `sft_config.yaml` in the working folder is read if it exists.

```bash fast
mini-chat-gpt config                          # all settings with their descriptions
mini-chat-gpt config training.batch_size=16 data.seq_len=384 > my_config.yaml
mini-chat-gpt inspect --config my_config.yaml data --n 1
```

For a misspelled name the error suggests the nearest valid one. A run folder has all its settings in `config.yaml`.

## The ten that matter first

| setting | default | |
|---|---|---|
"""
FIRST = {
    "sft.pretrained_checkpoint": "the base model: a run, a folder, `hub:org/name` or a file. Without it, the newest base under `runs/`",
    "chats.files": "your own chats: a file, a folder or a pattern",
    "lora.enabled": "`true` trains an adapter: less memory, small files, several adapters on one base",
    "sft.max_steps": "length of the run; `auto` is 3 epochs on chats. `--time-budget 10m` chooses it by time",
    "sft.learning_rate": "`auto` chooses by the number of trained parameters; change it if a run warns that the loss does not fall",
    "data.seq_len": "the longest example in tokens; memory and time grow with it",
    "training.batch_size": "examples in memory at a time. Lower it first if memory is short",
    "training.tokens_per_step": "tokens per optimizer step, whatever fits into memory at a time. Or `training.examples_per_step`",
    "model.preset": "shape of a model that you pretrain: 1m, 3m, 15m, 30m, 124m",
    "sft.save_dir": "where the run is written. If it has a run already, the next free name is used",
}
"""The settings at the top of the page, with advice in addition to their descriptions."""

HOW_VALUES_ARE_READ = r"""
## How values are read

The type of a setting decides how its value is read, in a file and on the command line alike:

| setting | value |
|---|---|
| text, path | as typed: `sft.save_dir=2024`, `wandb.name=no`, `'sft.save_dir=r/exp #2'`. Quotes around the whole value are removed. `~` at the beginning of a path is the home folder; environment variables are not replaced |
| can be null | `null`, `~` or nothing |
| number | decimal, such as `16`, `1_000`, `2e-5`; every number is finite and has bounds |
| true or false | also `yes`, `no`, `on`, `off` |
| list | `sft.prompts=Hello` is a list of one; for more, YAML in brackets: `'sft.prompts=[Hello, Why?]'` |
| mapping | YAML in braces: `'chats.files={a.jsonl: 2, b.jsonl: 1}'`; `chats.files=a.jsonl` is one file |

In a YAML file a key that is set twice is an error. Anchors and `<<` work; tags such as `!!python/name` don't.

## Which command uses which section

A command ignores the sections that it doesn't use. On the command line, a setting of such a section is a warning, or an error for `model.*` in
fine-tuning.

"""
TRAINING = ("pretrain", "sft", "recipe", "quickstart", "inspect", "doctor")
USERS = {
    "sft": ("sft", "recipe", "quickstart", "inspect", "doctor"),
    "pretrain": ("pretrain", "quickstart", "inspect", "doctor"),
    "model": ("pretrain", "quickstart", "doctor", "selfcheck"),
    "training": TRAINING,
    "data": TRAINING,
    "chats": ("sft", "recipe", "inspect", "doctor"),
    "lora": ("sft", "recipe", "quickstart", "doctor"),
    "system": TRAINING,
    "wandb": ("pretrain", "sft", "recipe", "quickstart", "doctor"),
}
"""The commands that use the settings of a section."""
ONLY_STORIES = "`data.seq_len`, `data.num_workers`, `data.limit` and `data.eval_examples` apply to all training, the others to fine-tuning."


def cell(text: str) -> str:
    """A text for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def shown(value: object) -> str:
    text = yaml.safe_dump(plain_value(value), default_flow_style=True, width=10**9).strip().removesuffix("\n...")
    return f"`{text}`"


def section_table(name: str, section: object) -> list[str]:
    """Heading and table of one section."""
    kind = type(section)
    described = descriptions(kind)
    lines = ["", f"## {name}", "", f"{kind.__doc__} Used by {', '.join(f'`{user}`' for user in USERS[name])}."]
    lines += [ONLY_STORIES] if name == "data" else []
    lines += ["", f"| `{name}.` | default | |", "|---|---|---|"]
    fields = sorted(kind.model_fields, key=lambda key: key != "preset")
    for key in fields:
        # The preset determines the shape, so the defaults of the other fields are those of a model without a preset.
        value = kind.model_fields[key].default if kind is ModelSection else getattr(section, key)
        lines.append(f"| `{key}` | {shown(value)} | {cell(described[key])} |")
    return lines


def page() -> str:
    """The text of the page."""
    config = Config()
    lines = []
    for key, advice in FIRST.items():
        section, _, name = key.partition(".")
        lines.append(f"| `{key}` | {shown(getattr(getattr(config, section), name))} | {advice} |")
    users = [f"| `{name}` | {', '.join(f'`{user}`' for user in users)} |" for name, users in USERS.items()]
    table = ["| section | used by |", "|---|---|", *users]
    sections = [line for name, section in config.__dict__.items() for line in section_table(name, section)]
    return INTRODUCTION + "\n".join(lines) + "\n" + HOW_VALUES_ARE_READ + "\n".join([*table, *sections]) + "\n"


def takes_settings(verb: str) -> bool:
    """Whether a verb's command line takes settings."""
    return any(action.dest in ("overrides", "words", "config") for action in make_parser(verb)._actions)


assert all(takes_settings(verb) for verb in {user for users in USERS.values() for user in users} if verb in VERBS)

if __name__ == "__main__":
    sys.stdout.write(page())
