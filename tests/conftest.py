"""Shared fixtures. Real material is found through MINI_CHAT_GPT_DATA; tests that want it skip with a message without it."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real stories, GPT-2's ranks and a pretrained model."""
    folder = os.environ.get("MINI_CHAT_GPT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MINI_CHAT_GPT_DATA does not name a folder with real material; this test needs it")
    return Path(folder).resolve()
