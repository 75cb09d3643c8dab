"""How much our models and adapters differ from those of `transformers` and PEFT with the same weights, in float32.

`python tests/family_differences.py` prints the largest differences of each family, as docs/models.md has them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from foreign_llamas import VARIANTS, make_llama

from mini_chat_gpt.checkpoints.families import family_of_type
from mini_chat_gpt.checkpoints.foreign import read_hf_model, stored_hf_model
from mini_chat_gpt.checkpoints.peft_adapter import with_adapter
from mini_chat_gpt.data.batching import Example, collate


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def gradients_differ_by(ours, theirs) -> float:
    """The largest difference of two gradients, relative to the largest gradient."""
    reference = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    part_of = family_of_type(theirs.config.model_type, "the test").hf_part
    differences, seen = [], set()
    for name, parameter in ours.named_parameters():
        part = part_of(name, ours.config)
        differences.append(float((parameter.grad - part.read(reference[part.source])).abs().max()))
        seen.add(part.source)
    assert seen == reference.keys()
    return max(differences) / max(float(gradient.abs().max()) for gradient in reference.values())


def sft_step(ours, theirs) -> tuple[float, float]:
    """The loss and gradients of packed conversations here, and of one by one there; returns the relative differences."""
    generator = np.random.default_rng(0)
    examples = []
    for n_tokens in (40, 9, 23):
        mask = generator.random(n_tokens) < 0.5
        mask[0], mask[-1] = False, True
        examples.append(Example(generator.integers(0, 96, n_tokens).astype(np.int32), mask, 1.0, "chat"))
    for model in (ours, theirs):
        model.zero_grad()
    sums = ours(collate(examples))
    loss = sums.weighted_sum / sum(example.loss_mask.sum() for example in examples)
    loss.backward()
    expected = torch.zeros(())
    for example in examples:
        ids = torch.from_numpy(example.ids.astype(np.int64))
        labels = torch.where(torch.from_numpy(example.loss_mask), ids, -100)
        expected = expected + F.cross_entropy(theirs(ids[None]).logits[0, :-1], labels[1:], reduction="sum")
    expected = expected / sum(example.loss_mask.sum() for example in examples)
    expected.backward()
    return relative(loss, expected), gradients_differ_by(ours, theirs)


def make_adapter(folder: Path, base: Path, **settings: Any) -> Any:
    """Save an adapter by PEFT with random weights; returns its model."""
    import peft
    from transformers import AutoModelForCausalLM

    values = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.1}
    base_model = AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(base_model, peft.LoraConfig(**values | settings)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    return model


def adapter_differs_by(folder: Path, model_type: str, **settings: Any) -> float:
    """The relative difference of logits with an adapter that PEFT makes for the model in `folder`."""
    ids = torch.randint(0, 96, (2, 60))
    theirs = make_adapter(folder / "adapter", folder, **settings)
    part_of = family_of_type(model_type, str(folder)).hf_part
    ours = with_adapter(stored_hf_model(folder), part_of, folder / "adapter").load()
    with torch.no_grad():
        return relative(ours(ids), theirs(ids).logits)


def main() -> None:
    rows: dict[str, list[float]] = {}
    for variant, changes in VARIANTS.items():
        theirs, ids = make_llama(**changes), torch.randint(0, 96, (2, 60))
        family = family_of_type(theirs.config.model_type, variant)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            theirs.save_pretrained(folder)
            ours = read_hf_model(folder)
            found = [relative(ours(ids), theirs(ids).logits), *sft_step(ours, theirs)]
            found += [adapter_differs_by(folder, family.model_type, use_dora=dora) for dora in (False, True)]
        rows[family.name] = [max(pair) for pair in zip(rows.get(family.name, found), found, strict=True)]
    print("family, logits, loss, gradients, logits with LoRA, logits with DoRA")
    for name, found in rows.items():
        print(f"| {name} | " + " | ".join(f"{difference:.0e}" for difference in found) + " |")


if __name__ == "__main__":
    sys.exit(main())
