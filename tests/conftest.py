"""Shared fixtures. Real material is found through MINI_CHAT_GPT_DATA; tests that want it skip with a message without it."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mini_chat_gpt.prepare.sample_stories import write_sample

# No test fails because the machine is busy.
settings.register_profile("without a clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without a clock")

# Under nohup or in the background of a script these signals are ignored, and the commands that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real stories, GPT-2's ranks and a pretrained model."""
    folder = os.environ.get("MINI_CHAT_GPT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MINI_CHAT_GPT_DATA does not name a folder with real material; this test needs it")
    return Path(folder).resolve()


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, driven by Playwright; the test is skipped without them."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def own_folder(tmp_path) -> Iterator[Path]:
    """A folder for gigabytes: it doesn't stay, as pytest's own do."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """A folder with a small sample: 20 records to train on, 60 held out. To be read only."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, n_train=20, n_valid=60)
    return folder
