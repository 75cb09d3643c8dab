"""Word lists, phrasings, prompts and settings that come with the package."""

from importlib.resources import files
from typing import Any

import yaml


def load(name: str) -> Any:
    """What one of the YAML files here holds."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one, where it is built, takes a tenth of the time
    return yaml.load((files(__name__) / name).read_text(encoding="utf-8"), Loader=loader)
