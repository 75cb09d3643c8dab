# %% [markdown]
# # One training step, written out
#
# At the end you can
#
# - compute the loss of a step from the logits, with loss weights,
# - say why the program divides by the weight of the whole step, and not of a micro-batch,
# - clip a gradient, and update the weights with AdamW, formula by formula,
# - check that your step and the program's give the same weights.
#
# ![the formula of a step](figures/step.svg)

# %%
import copy

import torch

import course
from mini_chat_gpt.data.batching import micro_batches
from mini_chat_gpt.sft_dataloader import InstructDataset

base, tokenizer = course.base()
config = course.settings()
# One question about each story. The run of the course has several, which share the computation of the story.
data = config.data.model_copy(update={"turns": 1, "prefix_branches": 1})
dataset = InstructDataset(course.DATA / "TinyStoriesInstruct-train.txt", tokenizer, data, seed=1)
examples = [dataset[i] for i in range(6)]
print(", ".join(f"{example.kind}: {len(example.ids)} tokens" for example in examples))

# %% [markdown]
# ## The loss
#
# Each supervised token has a loss, −log of its probability, and a weight. The loss of the step is the weighted mean Σ
# w·loss / Σ w. We compute it for each conversation separately, without packing.

# %%
model = copy.deepcopy(base)


def losses_of(model, example):
    """The losses of the supervised tokens of one example, and their weights."""
    ids = torch.from_numpy(example.ids.astype("int64"))
    log_probabilities = model(ids[None])[0].log_softmax(dim=-1)
    targets = torch.tensor([i for i in range(1, len(ids)) if example.loss_mask[i]])
    return -log_probabilities[targets - 1, ids[targets]], torch.tensor(example.weights[targets])


def step_loss(model, examples):
    parts = [losses_of(model, example) for example in examples]
    total = sum((losses * weights).sum() for losses, weights in parts)
    return total / sum(weights.sum() for _, weights in parts)


loss = step_loss(model, examples)
print(f"loss {loss.item():.5f} of {sum(example.n_trained for example in examples)} supervised tokens")

# %% [markdown]
# ## Micro-batches
#
# A step often doesn't fit into memory, so it is split into micro-batches, and their gradients are added. A mean of
# means would be wrong: a micro-batch with few supervised tokens would count as much as one with many. The program
# divides each sum by the weight of the *whole* step.

# %%
with torch.no_grad():
    for size in (1, 2, 6):
        batches = micro_batches(examples, size)
        sums = [model(batch).weighted_sum for batch in batches]
        right = sum(sums) / sum(batch.total_weight for batch in batches)
        means = [total / batch.total_weight for total, batch in zip(sums, batches)]
        print(
            f"{size} in a micro-batch: {right.item():.5f}; the mean of the means is {(sum(means) / len(means)).item():.5f}"
        )

# %% [markdown]
# ## The gradient
#
# `backward` computes the derivative of the loss by every weight. The *norm* of the gradient is the root of the sum of
# all squares. If it is larger than the limit, the gradient is scaled down to it. So one unusual batch can't ruin the
# model.

# %%
loss.backward()
gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
limit = config.training.grad_clip
gradients = {name: gradient * min(1.0, float(limit / norm)) for name, gradient in gradients.items()}
print(f"norm {norm.item():.4f}, limit {limit:g}")

# %% [markdown]
# ## The program's gradient
#
# `TrainStep` does all of this. It packs the examples, counts the weights, runs the backward pass of each micro-batch,
# and clips. With `update=False` it stops there, and leaves the gradient in the weights.

# %%
from mini_chat_gpt.common.device import pick_precision
from mini_chat_gpt.training.train_step import TrainStep

rate, decay = 1e-3, 0.1
# The course uses Muon for matrices. Here we ask for AdamW.
training = config.training.model_copy(update={"optimizer": "adamw", "weight_decay": decay, "batch_size": 2})
phase = config.sft.model_copy(update={"learning_rate": rate, "batch_size": 2})
adamw = config.model_copy(update={"training": training, "sft": phase})


def new_engine():
    return TrainStep(copy.deepcopy(base), adamw, phase, pick_precision("fp32", torch.device("cpu")))


engine = new_engine()
report = engine.train_step(examples, update=False)
print(f"loss {report.loss:.5f}, norm {report.norm:.4f}, {report.trained_tokens} supervised tokens")
of_program = {name: weight.grad.clone() for name, weight in engine.model.named_parameters()}
largest = max((of_program[name] - gradients[name]).abs().max().item() for name in gradients)
print(
    f"largest difference of a gradient: {largest:.0e}; largest gradient: {max(g.abs().max() for g in gradients.values()):.2f}"
)
assert largest < 1e-6

# %% [markdown]
# The gradients are equal up to rounding. A sum of numbers in float32 depends on their order, and packing changes the
# order.
#
# ## AdamW
#
# AdamW keeps two running means for each weight: *m* of the gradient and *v* of its square. The step is *m* / √*v*, so
# that every weight moves by about the learning rate. Both means begin at 0, which the division by 1 − βᵗ corrects.
# Weight decay makes matrices a little smaller in each step.

# %%
beta1, beta2, epsilon = config.training.beta1, config.training.beta2, 1e-8


@torch.no_grad()
def first_adamw_step(weight, g, t=1):
    m = (1 - beta1) * g
    v = (1 - beta2) * g**2
    step = (m / (1 - beta1**t)) / (torch.sqrt(v / (1 - beta2**t)) + epsilon)
    shrunk = weight * (1 - rate * decay) if weight.dim() >= 2 else weight
    return shrunk - rate * step


manual = {name: first_adamw_step(weight, of_program[name]) for name, weight in base.named_parameters()}

engine = new_engine()
report = engine.train_step(examples)
print(f"the program's step: {report.outcome}")
steps = [(weight - manual[name]).abs().max().item() for name, weight in base.named_parameters()]
differences = [(weight - manual[name]).abs().max().item() for name, weight in engine.model.named_parameters()]
print(f"largest step of a weight: {max(steps):.1e}, largest difference between both steps: {max(differences):.0e}")
assert max(differences) < 1e-6

# %% [markdown]
# The bound is 1e-6, a thousandth of a step. Our formula and the program's kernel round differently, so the weights
# are not equal bit for bit. The same examples in the same micro-batches do give the same bits:

# %%
again = new_engine()
again.train_step(examples)
print(all(torch.equal(one, other) for one, other in zip(again.model.parameters(), engine.model.parameters())))

# %% [markdown]
# ## Exercise
#
# Where does the gradient begin? Write the derivative of the loss by the logits. For one token with the probabilities
# *p* = softmax(*z*) and the label *y*, the derivative of −log *p*[*y*] by *z* is *p* − *e*, where *e* is 1 at *y* and
# 0 elsewhere. The loss is Σ w·loss / Σ w. `logits` is (R, V), `labels` and `weights` are (R,). The result is (R, V).


# %% exercise
def gradient_of_logits(logits, labels, weights):
    return torch.zeros_like(logits)


# %% check
with course.check():
    torch.manual_seed(0)
    logits = torch.randn(4, 7, requires_grad=True)
    labels, weights = torch.tensor([3, 0, 6, 6]), torch.tensor([1.0, 0.5, 2.0, 0.0])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    [expected] = torch.autograd.grad((losses * weights).sum() / weights.sum(), logits)
    found = gradient_of_logits(logits.detach(), labels, weights)
    assert found.shape == expected.shape, f"the shape is {tuple(found.shape)}, not {tuple(expected.shape)}"
    rows = [row for row in range(4) if not torch.allclose(found[row], expected[row], atol=1e-6)]
    assert not rows, f"rows {rows} are wrong"


# %% solution
def gradient_of_logits(logits, labels, weights):
    p = logits.softmax(dim=-1)
    e = torch.nn.functional.one_hot(labels, logits.shape[1])
    return (p - e) * (weights / weights.sum())[:, None]


# %% [markdown]
# The program uses this formula instead of autograd: [ops/loss.py](../mini_chat_gpt/ops/loss.py). Read next to it:
# [training/train_step.py](../mini_chat_gpt/training/train_step.py) and
# [training/adamw.py](../mini_chat_gpt/training/adamw.py).
