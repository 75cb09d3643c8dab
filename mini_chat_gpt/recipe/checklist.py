"""The checks of a recipe that need code: checklist.py in its folder.

    def check(record, reply):      required. The record of the held-out file (or of a training file) as a dict, and a reply to it.
        return {"greeting": True, "order": False}       each point by its name, and whether the reply passes it

    def problems(record):          optional, for `recipe check`: what is wrong with a record itself
        return ["the order number is not in the mail"]

This is Python code of whoever wrote the recipe, and it runs with the rights of the user. It is only loaded from the folder that
the user named, and only if its prompts.yaml has `checklist: true`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mini_chat_gpt.common.errors import UserError, short

CHECKLIST = "checklist.py"


class Checklist:
    """A loaded checklist.py. Its errors become a UserError that names the file and the record."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the file is missing, can't be imported, or has no `check`."""
        self.path = folder / CHECKLIST
        if not self.path.is_file():
            raise UserError(
                f"There is no {self.path}, which `checklist: true` in prompts.yaml needs; write one with a function check(record, reply)."
            )
        try:
            self._module = self._load()
        except Exception as error:
            raise UserError(f"{self.path} can't be loaded: {self._line(error)}.") from None
        if not callable(getattr(self._module, "check", None)):
            raise UserError(
                f"{self.path} has no function check(record, reply); add one that returns {{point: passed}}."
            )

    def _load(self) -> ModuleType:
        name = f"recipe_checklist_of_{self.path.parent.resolve().name}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    def __call__(self, record: Mapping[str, Any], reply: str, place: str) -> dict[str, bool]:
        """Each point, and whether the reply passes it. Raises UserError."""
        points = self._call("check", place, record, reply)
        if not isinstance(points, Mapping) or not points or not all(isinstance(name, str) for name in points):
            raise UserError(
                f"{self.path}: check returned {short(points)} for {place}; it must return {{point: passed}}."
            )
        return {name: bool(passed) for name, passed in points.items()}

    def problems(self, record: Mapping[str, Any], place: str) -> list[str]:
        """What is wrong with a record itself. Raises UserError."""
        if not hasattr(self._module, "problems"):
            return []
        return [str(problem) for problem in self._call("problems", place, record)]

    def _call(self, function: str, place: str, *arguments: Any) -> Any:
        try:
            return getattr(self._module, function)(*arguments)
        except Exception as error:
            raise UserError(f"{self.path}: {function} fails for {place}: {self._line(error)}.") from None

    def _line(self, error: Exception) -> str:
        """The error, with the last line of the checklist that was running."""
        frames = traceback.extract_tb(error.__traceback__)
        where = [frame for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(self.path)]
        line = f" (line {where[-1].lineno})" if where else ""
        return f"{type(error).__name__}: {str(error).rstrip('.')}{line}"
