"""Package data: word lists, prompt templates, prompts, settings, and the CSS and JavaScript of the pages."""

from importlib.resources import files
from typing import Any

import yaml


def load(name: str) -> Any:
    """The content of a YAML file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader, if available, is ten times as fast
    return yaml.load(text(name), Loader=loader)


def text(name: str) -> str:
    """A file as text."""
    return (files(__name__) / name).read_text(encoding="utf-8")
