# %% [markdown]
# # Attention: from the plain formula to the KV cache
#
# At the end you can
#
# - compute attention with loops, and as products of matrices,
# - say what the causal mask and the mask of a packed row hide,
# - read the attention pattern of a trained model,
# - say why a KV cache gives the same logits with less work.
#
# Shapes use these letters: B sequences, T tokens, H heads of size D, C the width of the model.

# %%
import math

import torch
from matplotlib.figure import Figure

import course
from mini_chat_gpt.ops.attention import Causal, Packed, attention

torch.manual_seed(0)
T, D = 5, 4
q, k, v = torch.randn(3, T, D)

# %% [markdown]
# ## The formula, as loops
#
# Each token has a query, a key and a value. The score of token *t* for token *s* is the product of its query with the
# key of *s*, divided by √D. The softmax makes the scores weights that sum to 1. The result is the mean of the values
# with these weights. Token *t* sees only itself and the tokens before it: this is the *causal mask*.


# %%
def attention_in_loops(q, k, v):
    out = torch.zeros_like(v)
    for t in range(len(q)):
        scores = [float(q[t] @ k[s]) / math.sqrt(q.shape[1]) for s in range(t + 1)]
        weights = torch.tensor(scores).softmax(dim=0)
        for s in range(t + 1):
            out[t] += weights[s] * v[s]
    return out


plain = attention_in_loops(q, k, v)
print(plain)

# %% [markdown]
# ## The same as products of matrices
#
# All scores at once are the matrix *q kᵀ*. A score of −∞ has a weight of 0.

# %%
scores = q @ k.T / math.sqrt(D)  # (T, T)
hidden = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
print(weights.round(decimals=2))
print("largest difference:", f"{(weights @ v - plain).abs().max().item():.0e}")
assert torch.allclose(weights @ v, plain, atol=1e-6)

# %% [markdown]
# The program's `attention` takes tensors of shape (B, H, T, D) and a *layout*, which says which tokens see which.

# %%
of_program = attention(q[None, None], k[None, None], v[None, None], Causal())[0, 0]
print("largest difference:", f"{(of_program - plain).abs().max().item():.0e}")
assert torch.allclose(of_program, plain, atol=1e-6)

# %% [markdown]
# ## A packed row
#
# Training concatenates several conversations into one row. A token must not see another conversation: this is the
# *document mask*. Here the first conversation has two tokens and the second one three.

# %%
layout = Packed(cu_seqlens=(0, 2, 5))
packed = attention(q[None, None], k[None, None], v[None, None], layout)[0, 0]
separate = torch.cat([attention_in_loops(q[:2], k[:2], v[:2]), attention_in_loops(q[2:], k[2:], v[2:])])
print("largest difference from separate rows:", f"{(packed - separate).abs().max().item():.0e}")
assert torch.allclose(packed, separate, atol=1e-6)

# %% [markdown]
# ![a packed batch with its masks](figures/packed-batch.svg)
#
# ## The pattern of a trained model
#
# The model of the course has 3 layers with 2 heads each. These are the weights of both heads of its last layer, for
# the end of a question.

# %%
model, tokenizer = course.tuned()

# %%
from mini_chat_gpt.chat_format import Message, render

story = "Once there was a girl named Nelly. Nelly had a kite. The main character is Nelly."
ids, _ = render([Message("user", story)], tokenizer)
ids = torch.tensor([ids])
positions = torch.arange(ids.shape[1])[None]

with torch.no_grad():
    x, rope, _ = model.embed(ids, positions)
    for block in model.layers[:-1]:
        x = block(x, rope, Causal())
    queries, keys, values = model.layers[-1].qkv(x, rope)  # (1, H, T, D)
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal=1)
    pattern = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)[0]

names = [tokenizer.decode([i], control=True).replace(" ", "·") for i in ids[0].tolist()]
figure = Figure(figsize=(12, 6))
for head, axes in enumerate(figure.subplots(1, 2)):
    axes.imshow(pattern[head], cmap="viridis", vmin=0, vmax=1)
    axes.set(title=f"layer 3, head {head + 1}", xticks=range(len(names)), yticks=range(len(names)))
    axes.set_xticklabels(names, rotation=90, fontsize=7)
    axes.set_yticklabels(names, fontsize=7)
course.picture(figure)

# %% [markdown]
# Each row is a token that reads, each column a token that is read. Bright fields are large weights. Everything above
# the diagonal is 0.
#
# ## The KV cache
#
# To write a reply, the model predicts one token, appends it, and predicts the next one. The keys and values of the
# earlier tokens don't change. A KV cache stores them. Then a step computes only the newest token.

# %%
with torch.no_grad():
    without_cache = model(ids)[0]  # all tokens at once: (T, V)
    cache = model.make_cache(batch_size=1)
    steps = [model.next_logits(ids[:, t : t + 1], cache, [1]) for t in range(ids.shape[1])]
with_cache = torch.cat(steps)
print("largest difference of a logit:", f"{(with_cache - without_cache).abs().max().item():.0e}")
assert torch.allclose(with_cache, without_cache, atol=1e-4)

# %% [markdown]
# The logits are equal up to rounding. The work is not:

# %%
print("new tokens  tokens computed without a cache  with a cache")
for n in (10, 100, 1000):
    print(f"{n:10,}  {sum(range(1, n + 1)):31,}  {n:12,}")
n_numbers = 2 * model.config.n_layer * model.config.kv_heads * model.config.head_size
print(f"\nThe cache has {n_numbers} numbers for each token.")

# %% [markdown]
# ## Exercise
#
# Write one step with a cache. `attend_next` gets the query, key and value of the newest token, each of shape (D,),
# and the lists of the keys and values before it. It appends the new key and value to the lists and returns the result
# for the newest token, of shape (D,).


# %% exercise
def attend_next(q, k, v, keys, values): ...


# %% check
with course.check():
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 9, 8)
    expected = attention(q[None, None], k[None, None], v[None, None], Causal())[0, 0]
    keys, values = [], []
    for t in range(9):
        out = attend_next(q[t], k[t], v[t], keys, values)
        assert out is not None, "the function returns nothing"
        assert len(keys) == len(values) == t + 1, "the new key and value must be appended, once"
        assert torch.allclose(out, expected[t], atol=1e-6), (
            f"token {t} differs by {(out - expected[t]).abs().max():.3f}"
        )


# %% solution
def attend_next(q, k, v, keys, values):
    keys.append(k)
    values.append(v)
    scores = torch.stack(keys) @ q / math.sqrt(len(q))
    return scores.softmax(dim=0) @ torch.stack(values)


# %% [markdown]
# Read next to it: [ops/attention.py](../mini_chat_gpt/ops/attention.py),
# [ops/packed_layout.py](../mini_chat_gpt/ops/packed_layout.py) and
# [ops/kv_cache.py](../mini_chat_gpt/ops/kv_cache.py).
