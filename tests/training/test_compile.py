"""A compiled model computes the same and is compiled once for all batches; where compiling is impossible a sentence says why.

Most tests use the backend "aot_eager": its graphs and reasons to recompile are those of the real one, but it needs no C++
compiler.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny import tiny_model
from torch.nn.parallel import DistributedDataParallel

from mini_chat_gpt.data.batching import Batch, Example, blank_batch, collate
from mini_chat_gpt.model import GPT
from mini_chat_gpt.training.compile import choose_compiling, compile_model, explain, trial

CPU = torch.device("cpu")
GPT2_LIKE = {"norm": "layernorm", "position": "learned", "activation": "gelu_tanh", "bias": True, "qkv_bias": True}


@pytest.fixture(autouse=True)
def _reset_compiler():
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def batches(vocab_size: int) -> list[Batch]:
    """One example and many, short and long. The first batch has 64 tokens, a number that other dimensions have, too."""
    rng = np.random.default_rng(0)

    def example(n: int) -> Example:
        trained = rng.random(n) < 0.4
        trained[-1] = True
        return Example(rng.integers(0, vocab_size, n).astype(np.int32), trained, 1.5, "any")

    lengths = [[64], [20, 25, 30], [60], list(range(10, 50)), [2, 2], [30] * 30, [63] * 5]
    return [collate([example(n) for n in batch]) for batch in lengths] + [blank_batch()]


def numbers(net: torch.nn.Module, batch: Batch, dtype: torch.dtype, train: bool) -> list[torch.Tensor]:
    """The losses of a batch, and in training the gradients."""
    model = net.module if isinstance(net, DistributedDataParallel) else net
    model.train(train)
    with torch.set_grad_enabled(train), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        sums = (net if train else model)(batch)
    if not train:
        return [sums.losses]
    sums.weighted_sum.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    net.zero_grad()
    return [sums.losses, *(g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients)]


def difference(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """The largest difference relative to a tensor's norm; the norm of a gradient that should be zero is replaced."""
    total = sum(float(tensor.norm()) for tensor in theirs)
    pairs = zip(ours, theirs, strict=True)
    return max((float((a - b).norm() / max(b.norm(), 1e-3 * total)) for a, b in pairs if total), default=0.0)


def largest_difference(ours: torch.nn.Module, theirs: torch.nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """The largest over many batches, in training and in evaluation. After the first batch nothing may be recompiled."""
    vocab_size = getattr(ours, "module", ours).config.vocab_size
    found = []
    for batch in batches(vocab_size):
        for train in (True, False):
            found.append(difference(numbers(ours, batch, dtype, train), numbers(theirs, batch, dtype, train)))
        torch.compiler.set_stance("fail_on_recompile")
    return max(found)


@pytest.fixture(scope="module")
def compiler() -> None:
    obstacle = trial(CPU)
    if obstacle:
        pytest.skip(f"nothing can be compiled here: {obstacle}")


@pytest.mark.usefixtures("compiler")
def test_a_model_compiled_once_equals_the_plain_model_for_all_lengths():
    plain = tiny_model(97, n_embd=64)
    compiled = copy.deepcopy(plain)
    compile_model(compiled)
    assert largest_difference(compiled, plain) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_in_16_bits_the_difference_is_rounding(dtype, bound):
    plain = tiny_model(97, n_embd=64)
    compiled = copy.deepcopy(plain)
    compile_model(compiled)
    assert largest_difference(compiled, plain, dtype) < bound


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_results_do_not_depend_on_the_batch_that_came_first(tmp_path):
    code = (
        "import os, sys, torch; sys.path += sys.argv[1].split(os.pathsep); from test_compile import *; model = tiny_model(97);"
        "compile_model(model); made = batches(97);"
        "numbers(model, made[int(sys.argv[2])], torch.bfloat16, True);"
        "torch.save(numbers(model, made[3], torch.bfloat16, True), sys.argv[3])"
    )
    here = Path(__file__).parent
    for first in "05":  # a resumed run begins with another batch, but must continue as if it had never stopped
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache-{first}")}
        command = [
            sys.executable,
            "-c",
            code,
            os.pathsep.join([str(here), str(here.parent)]),
            first,
            str(tmp_path / first),
        ]
        subprocess.run(command, check=True, env=environment)
    for one, other in zip(torch.load(tmp_path / "0"), torch.load(tmp_path / "5"), strict=True):
        assert torch.equal(one, other)


CASES = {
    "gpt2-like, windowed": (GPT2_LIKE | {"windows": (3, None)}, torch.float32, False),
    "qwen-like, untied, float16": (
        {"qk_norm": True, "qkv_bias": True, "head_dim": 16, "tie_embeddings": False},
        torch.float16,
        False,
    ),
    "gemma-like": (
        {
            "norm_placement": "both",
            "norm_offset": True,
            "qk_norm": True,
            "activation": "geglu",
            "embedding_factor": 5.6,
            "windows": (4, None),
            "window_rope_theta": 1e3,
        },
        torch.float32,
        False,
    ),
    "norms after": ({"norm_placement": "after", "qk_norm": "all_heads"}, torch.float32, False),
    "bf16, checkpointed": ({"n_embd": 64}, torch.bfloat16, True),
}


SLOW = ("gpt2-like, windowed", "norms after", "bf16, checkpointed", "qwen-like, untied, float16")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_another_length_causes_no_recompilation(case):
    shape, dtype, checkpointed = CASES[case]
    plain = tiny_model(97, **shape)
    compiled = copy.deepcopy(plain)
    compiled.activation_checkpointing = checkpointed
    compile_model(compiled, "aot_eager")
    assert largest_difference(compiled, plain, dtype) < (1e-5 if dtype == torch.float32 else 0.01)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(("how", "when"), [("ddp", "before"), pytest.param("fsdp", "after", marks=pytest.mark.slow)])
def test_a_wrapped_model_is_compiled(how, when):
    from mini_chat_gpt.training.fsdp import shard

    def wrapped(model: GPT) -> torch.nn.Module:
        return DistributedDataParallel(model) if how == "ddp" else shard(model, CPU)

    model = tiny_model(97)
    plain, net = copy.deepcopy(model), model
    if when == "before":
        compile_model(model, "aot_eager")
        net = wrapped(model)
    else:
        net = wrapped(model)
        compile_model(model, "aot_eager")
    assert largest_difference(net, plain) < 1e-5


def test_a_deep_copy_of_a_compiled_model_uses_its_own_weights():
    model = tiny_model(97)
    compile_model(model, "aot_eager")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    plain = tiny_model(97)
    plain.load_state_dict(twin.state_dict())
    batch = batches(97)[1]
    assert difference(numbers(twin, batch, torch.float32, True), numbers(plain, batch, torch.float32, True)) < 1e-5


def test_generation_with_a_compiled_model_compiles_nothing():
    plain = tiny_model(97).eval()
    compiled = copy.deepcopy(plain)
    compile_model(compiled)
    torch._dynamo.utils.counters.clear()
    ids = torch.randint(0, 97, (3, 20))
    with torch.inference_mode():
        for n_rows in (3, 1):
            caches = [model.make_cache(n_rows) for model in (plain, compiled)]
            for new in (ids[:n_rows], ids[:n_rows, :1]):
                ours, theirs = (
                    model.next_logits(new, cache, [new.shape[1]] * n_rows)
                    for model, cache in zip((compiled, plain), caches, strict=True)
                )
                assert torch.equal(ours, theirs)
        assert torch.equal(compiled(ids), plain(ids))
    assert not torch._dynamo.utils.counters["stats"]


def test_the_weights_of_a_compiled_model_keep_their_names():
    model = tiny_model(97)
    before = list(model.state_dict())
    compile_model(model)
    assert list(model.state_dict()) == before


def test_the_setting_decides_before_the_trial(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.training.compile.trial", lambda device: "there is no compiler")
    gpu = torch.device("cuda")
    assert choose_compiling(False, gpu, 10**6).reason == "not compiled: as configured"
    assert "seldom pays" in choose_compiling("auto", CPU, 10**6).reason
    assert "20 steps are too few" in choose_compiling("auto", gpu, 20).reason
    for setting in (True, "auto"):
        choice = choose_compiling(setting, gpu, 10**6)
        assert (choice.on, choice.reason) == (False, "not compiled: there is no compiler")


def test_auto_compiles_a_long_run_on_a_gpu(monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.training.compile.trial", lambda device: None)
    assert choose_compiling("auto", torch.device("cuda"), 1000).on
    assert choose_compiling(True, torch.device("cuda"), 1).on


def chosen(setting: str, **environment: str) -> str:
    """The output of a new process: its choice, and whether it has imported PyTorch's compiler."""
    code = (
        "import sys, torch; from mini_chat_gpt.training.compile import choose_compiling;"
        f"print(choose_compiling({setting}, torch.device('cpu'), 10**6).reason, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_pytorchs_compiler_is_not_imported_before_it_is_needed():
    assert chosen("'auto'").endswith("False")


POSIX = pytest.mark.skipif(os.name != "posix", reason="the compiler is expected to be g++ or clang++")


@POSIX
@pytest.mark.parametrize(
    "environment", [{"CXX": "/nowhere/g++"}, pytest.param({"PATH": "/nowhere", "CXX": "g++"}, marks=pytest.mark.slow)]
)
def test_without_a_compiler_one_sentence_says_what_to_install(environment):
    assert chosen("True", **environment).startswith("not compiled: no C++ compiler is found; install g++ or clang")


@POSIX
def test_without_pythons_headers_one_sentence_says_what_to_install(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in --version) echo "g++ (GCC) 13"; exit 0;; esac\n'
        "echo '<stdin>:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1\n"
    )
    compiler.chmod(0o755)
    assert chosen("True", CXX=str(compiler)).startswith(
        "not compiled: Python's headers are missing (Python.h); install"
    )


def test_any_other_error_is_named_in_one_line():
    sentence = explain(PermissionError("[Errno 13] Permission denied: '/tmp/cache'\nand much more\n"))
    assert sentence == "a trial failed (PermissionError: [Errno 13] Permission denied: '/tmp/cache')"
