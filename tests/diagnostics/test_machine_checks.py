"""Checks of the machine and the free disk space."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from mini_chat_gpt.diagnostics.machine_checks import (
    Finding,
    disk_finding,
    machine_findings,
    other_torch_processes,
)


def by_subject(findings) -> dict[str, Finding]:
    return {finding.about: finding for finding in findings}


def test_an_ordinary_machine_has_no_errors():
    findings = by_subject(machine_findings(tiny_config(), steps=10))
    assert {"Python", "device", "precision", "compiling", "threads", "wandb"} == set(findings)
    assert not [finding for finding in findings.values() if finding.level == "error"]
    assert torch.__version__ in findings["Python"].what


def test_a_missing_device_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = tiny_config(system={"device": "cuda"})
    assert by_subject(machine_findings(config, steps=10))["device"].level == "error"


def test_a_disk_too_small_for_the_checkpoints_is_an_error(tmp_path):
    assert disk_finding(tmp_path / "runs" / "sft", 2**20, 2).level == "ok"
    assert "keep_checkpoints" in disk_finding(tmp_path, 2**60, 2).what
    (tmp_path / "file").touch()
    refused = disk_finding(tmp_path / "file" / "sft", 2**20, 2)
    assert refused.level == "error"
    assert "not a directory" in refused.what
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="finding other processes needs Linux's /proc")
def test_another_process_that_computes_is_found():
    code = "import torch, threading; a = torch.randn(256, 256); work = lambda: [a @ a for _ in range(10**9)]\n"
    code += "threading.Thread(target=work, daemon=True).start(); print('on', flush=True); work()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "on\n"
        assert any(any("torch" in name for name in other_torch_processes()) for _ in range(200))
        other.kill()
