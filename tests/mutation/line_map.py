"""A pytest plugin that records which tests execute which lines, so that a mutant only runs the tests that can notice it.

Lines that are executed while a module is imported, or by a fixture, which several tests may share, count for the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import coverage
import pytest

LineMap = Mapping[str, Mapping[str, list[str]]]
"""module -> line -> ids of the tests that execute it; the path of a test file stands for all its tests."""


class RecordLines:
    """Writes the LineMap of one test file to `target`."""

    def __init__(self, root: Path, test_file: str, target: Path) -> None:
        self.root, self.test_file, self.target = root, test_file, target
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, include=[str(root / "mini_chat_gpt" / "*")]
        )
        self.coverage.start()
        self.coverage.switch_context(test_file)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context(self.test_file)

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            Path(module).relative_to(self.root).as_posix(): data.contexts_by_lineno(module)
            for module in data.measured_files()
        }
        self.target.write_text(json.dumps(lines), encoding="utf-8")
