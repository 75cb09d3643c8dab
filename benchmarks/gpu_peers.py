"""The other implementations of gpu.sh: `transformers`, PEFT and TRL with our weights and examples, where they are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from gpu_setup import Setup
from step_implementations import padded, trl
from step_setting import Item, Setting, n_tokens, write_checkpoint

from mini_chat_gpt.checkpoints.hf import to_hf_config, to_hf_state
from mini_chat_gpt.model import GPT

Step = Callable[[list[Item]], object]


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def hf_model(model: GPT, dtype: torch.dtype, device: torch.device) -> Any:
    """`transformers`' Llama with a model's weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size = model.config.vocab_size
    tokenizer: Any = SimpleNamespace(
        bos_id=0, end_id=0, stop_ids={0}, vocab_size=vocab_size, control={}, declared=None, chat_format=None
    )
    hf = LlamaForCausalLM(LlamaConfig(**to_hf_config(model.config, tokenizer)))
    hf.load_state_dict(to_hf_state(model.state_dict(), model.config), strict=False)
    hf.tie_weights()
    return hf.to(device, dtype)


def hf_step(setup: Setup, model: GPT, adapter: bool) -> Step:
    """A plain loop over padded batches: all weights in float32 under autocast, or PEFT's adapter on 16-bit weights."""
    net = hf_model(model, setup.precision.dtype if adapter else torch.float32, setup.device).train()
    if adapter:
        from peft import LoraConfig, get_peft_model

        net = get_peft_model(net, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear"))
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    def step(items: list[Item]) -> None:
        ids, labels = (part.to(setup.device) for part in padded(items))
        with setup.precision.autocast(setup.device):
            logits = net(input_ids=ids, use_cache=False).logits  # padding is on the right, where no real token attends
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


class _Enough(Exception):
    """Ends TRL's training."""


class _Timer:
    """Times the steps of a trainer that has its own loop, and ends it after the last one."""

    def __init__(self, steps: int) -> None:
        self.steps, self.rates = steps, list[float]()
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self, tokens: int, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.rates.append(tokens / (time.perf_counter() - self._began))
        if len(self.rates) == self.steps:
            raise _Enough


def trl_rates(setup: Setup, setting: Setting, warm_up: int, steps: int) -> list[float]:
    """Tokens per second of each step of TRL's SFTTrainer on all weights, in 16 bits and without recomputed activations."""
    timer = _Timer(warm_up + steps)
    half = "bf16" if setup.precision.dtype == torch.bfloat16 else "fp16"
    options = {half: True, "gradient_checkpointing": False, "use_cpu": setup.device.type == "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(setting, Path(folder) / "model")
        with contextlib.suppress(_Enough):
            trl(setting, str(checkpoint), timer, n_steps=warm_up + steps + 2, **options)  # type: ignore[arg-type]
    return timer.rates[warm_up:]


def hf_replies(model: GPT, dtype: torch.dtype, device: torch.device) -> Callable[[torch.Tensor, int], object]:
    """`transformers`' greedy generation: (prompts (B, T), new tokens) -> replies."""
    from transformers import GenerationConfig

    net = hf_model(model, dtype, device).eval()

    @torch.inference_mode()
    def reply(prompts: torch.Tensor, n_new: int) -> object:
        settings = GenerationConfig(
            max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return net.generate(prompts, generation_config=settings).tolist()

    return reply


def tokens_per_second(step: Step, items: list[Item]) -> float:
    """Tokens per second of one step; every step reads its loss, which waits for the GPU."""
    began = time.perf_counter()
    step(items)
    return n_tokens(items) / (time.perf_counter() - began)
