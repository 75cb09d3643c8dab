"""`selfcheck` passes with a correct model and fails with each kind of error."""

import torch
from tiny import lively_model

from mini_chat_gpt.data.batching import collate
from mini_chat_gpt.diagnostics import selfcheck


def test_everything_agrees_on_this_machine(capsys):
    assert selfcheck.main(["--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(" ok") == 5
    assert "2 processes with 4 each" in printed


def test_attention_to_another_conversation_is_detected():
    model = lively_model(64, context_length=256)
    examples = selfcheck.make_examples(model)
    examples.sort(key=lambda example: len(example.ids))  # the first two fit into the context together
    assert selfcheck.batched_check(model, examples).passed
    correct = model.forward

    def leaking(batch):
        if isinstance(batch, torch.Tensor):
            return correct(batch)
        return correct(collate_with(batch, (0, batch.cu_seqlens[2], *batch.cu_seqlens[3:])))  # two conversations as one

    model.forward = leaking
    assert not selfcheck.batched_check(model, examples).passed


def collate_with(batch, cu_seqlens):
    return type(batch)(**{**vars(batch), "cu_seqlens": cu_seqlens})


def test_a_mean_of_means_is_detected():
    model = lively_model(64)
    examples = selfcheck.make_examples(model)
    correct = selfcheck.plain_gradient(model, examples)
    means = [selfcheck.plain_gradient(model, [example]) for example in examples]
    wrong = {name: sum(mean[name] for mean in means) / len(means) for name in correct}
    assert not selfcheck.gradient_check("a mean of means", wrong, correct).passed


def test_a_cache_with_missing_keys_is_detected():
    model = lively_model(64)
    examples = selfcheck.make_examples(model)
    assert selfcheck.cache_check(model, examples).passed
    read = model.next_logits

    def forgetful(ids, cache, n_tokens):
        cache.keys[:, :, :, 3] = 0
        return read(ids, cache, n_tokens)

    model.next_logits = forgetful
    assert not selfcheck.cache_check(model, examples).passed


def test_nan_is_never_ok():
    assert not selfcheck.Check("broken", float("nan")).passed
    assert collate(selfcheck.make_examples(lively_model(64))).n_examples == 8
