"""benchmarks/gpu.sh, which needs a GPU to be of use, runs on a CPU with small models, so that nothing but the device is new there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    sys.path.append(str(BENCHMARKS))
    import gpu
    import gpu_parity
    import gpu_setup

    yield gpu, gpu_parity, gpu_setup.make_setup("cpu", tiny=True)
    sys.path.remove(str(BENCHMARKS))
    torch.backends.cuda.matmul.allow_tf32 = True


@pytest.mark.parametrize("name", ["attention", "packing", "precision", "nf4", "cache"])
def test_a_parity_check_passes_on_a_cpu(gpu, name):
    _, parity, setup = gpu
    results = list(parity.CHECKS[name](setup))
    assert results
    assert [result.what for result in results if not result.passed] == []


def test_a_difference_above_its_limit_or_nan_fails_and_the_exit_code_says_so(gpu, monkeypatch, capsys):
    main, parity, _ = gpu
    results = [
        parity.Result("close", 1e-6, 1e-4),
        parity.Result("far", 1e-3, 1e-4),
        parity.Result("nan", float("nan"), 1e-4),
    ]
    monkeypatch.setattr(parity, "CHECKS", {"some": lambda setup: iter(results)})
    assert main.main(["parity", "--tiny", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert (printed.count("PASS"), printed.count("**FAIL**")) == (1, 2)
    results = results[:1]
    assert main.main(["parity", "--tiny", "--device", "cpu"]) == 0


def test_a_check_that_raises_fails_and_the_others_run(gpu, monkeypatch, capsys):
    main, parity, _ = gpu

    def broken(setup):
        raise RuntimeError("no kernel for this card\nmore")

    monkeypatch.setattr(
        parity, "CHECKS", {"broken": broken, "good": lambda _: iter([parity.Result("close", 0.0, 1.0)])}
    )
    assert main.main(["parity", "--tiny", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "broken: RuntimeError: no kernel for this card |" in printed
    assert "| close |" in printed


def test_a_mistake_in_attention_is_noticed(gpu, monkeypatch):
    _, parity, setup = gpu
    attention = parity.attention
    monkeypatch.setattr(
        parity, "attention", lambda q, k, v, layout, window: attention(q, k, v.roll(1, dims=2), layout, window=window)
    )
    assert not any(result.passed for result in parity.packed_attention_checks(setup))


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu():
    variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [BENCHMARKS / "gpu.sh", "--tiny", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**FAIL" not in done.stdout
    for title in ("Parity", "Training", "Fine-tuning at SmolLM2-135M's shape", "Replies at SmolLM2-135M's shape"):
        assert f"\n### {title}" in done.stdout
    for check in ("attention", "compiled = eager", "bf16", "float16: an overflow", "NF4", "LoRA", "KV cache", "DDP"):
        assert f"{check}" in done.stdout
