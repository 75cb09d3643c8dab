# %% [markdown]
# # Sampling, and why it said that
#
# At the end you can
#
# - say what temperature, top-k, top-p and min-p do to the probabilities of the next token,
# - draw a token with one random number, and repeat a reply with its seed,
# - read the output of `/why`, and find the token at which a reply became wrong.

# %%
import torch
from matplotlib.figure import Figure

import course
from mini_chat_gpt.generation.decode import prefill
from mini_chat_gpt.generation.text import prompt_ids

model, tokenizer = course.base()
prompt = prompt_ids(tokenizer, "Once there was a")
with torch.inference_mode():
    logits = prefill(model, [prompt], model.make_cache(1))  # (1, V)
probabilities = logits.softmax(dim=-1)[0]
for p, i in zip(*(part.tolist() for part in probabilities.topk(8))):
    print(f"{tokenizer.decode([i])!r:12} {p:6.1%}")

# %% [markdown]
# The model gives every entry of the vocabulary a probability. Greedy decoding takes the most probable one. It always
# gives the same reply, but a story gets dull. Sampling draws a token.
#
# ## Temperature
#
# The logits are divided by the temperature before the softmax. Below 1 the probable tokens become more probable,
# above 1 all become more alike.

# %%
from mini_chat_gpt.generation.sampling import Sampling, process_logits

top = probabilities.topk(12).indices
names = [tokenizer.decode([i]).replace(" ", "·") for i in top.tolist()]
figure = Figure(figsize=(11, 3))
for axes, temperature in zip(figure.subplots(1, 3, sharey=True), (0.5, 1.0, 2.0)):
    changed = process_logits(logits, Sampling(temperature=temperature)).softmax(dim=-1)[0]
    axes.bar(names, changed[top])
    axes.set_title(f"temperature {temperature}")
    axes.tick_params(axis="x", rotation=90)
course.picture(figure)

# %% [markdown]
# ## Filters
#
# A filter removes improbable tokens; their logits become −∞. *Top-k* keeps the k most probable tokens. *Top-p* keeps
# the smallest set whose probabilities sum to p. *Min-p* keeps tokens that are at least p times as probable as the
# most probable one. Top-p and min-p adapt: where the model is sure, few tokens stay.

# %%
for sampling in (Sampling(top_k=5), Sampling(top_p=0.9), Sampling(min_p=0.1)):
    kept = process_logits(logits, sampling)[0].isfinite().sum().item()
    print(
        f"top_k {sampling.top_k}, top_p {sampling.top_p}, min_p {sampling.min_p}: {kept} of {tokenizer.vocab_size} tokens"
    )

# %% [markdown]
# ## Drawing a token
#
# Put the probabilities next to each other on a line from 0 to 1. A random number points to one of them. So a token is
# drawn as often as its probability says. Each reply has a stream of random numbers of its own, which depends on the
# seed: the same seed gives the same reply.

# %%
from mini_chat_gpt.generation.sampling import sample

torch.manual_seed(0)
n = 20_000
drawn = sample(logits.expand(n, -1), torch.rand(n))
for i in top[:4].tolist():
    print(f"{tokenizer.decode([i])!r:12} probability {probabilities[i]:6.1%}, drawn {(drawn == i).float().mean():6.1%}")

# %%
from mini_chat_gpt.generation import generate

for temperature, seed in ((0, None), (0.7, 1), (0.7, 1), (0.7, 2), (2.0, 1)):
    [text] = generate(model, tokenizer, ["Once there was a"], max_new_tokens=30, temperature=temperature, seed=seed)
    print(f"temperature {temperature}, seed {seed}: {text!r}")

# %% [markdown]
# ## Why did it say that?
#
# In a chat, `/why` explains the last reply. For each token it shows the probability that the model gave it ("model"),
# the probability after temperature and filters ("sampled"), its rank, and the alternatives. The background is red for
# improbable tokens and green for probable ones.

# %%
tuned, chat_tokenizer = course.tuned()

# %%
from mini_chat_gpt.chat.token_probs_view import render_text
from mini_chat_gpt.evaluation.held_out import held_out_tasks
from mini_chat_gpt.generation.text import generate_replies
from mini_chat_gpt.generation.token_probs import explain

tasks = held_out_tasks(course.VALID, [(tuned, chat_tokenizer)], n=8, kinds=["main_character"])["unseen"]
sampling = Sampling(max_new_tokens=24, temperature=1.0, seed=3)
replies = generate_replies(tuned, chat_tokenizer, [task.prompt for task in tasks], sampling)
explanations = [
    explain(tuned, chat_tokenizer, prompt_ids(chat_tokenizer, task.prompt), reply.ids, reply.stop_id, sampling)
    for task, reply in zip(tasks, replies)
]
for task, reply, explanation in zip(tasks, replies, explanations):
    print(f"{task.answer:8} {reply.text!r:40} mean probability {explanation.mean_probability:.0%}")

# %% [markdown]
# The reply in which the model was least sure of a token, in full:

# %%
unsure = min(range(len(tasks)), key=lambda n: min(token.probability for token in explanations[n].tokens))
print(tasks[unsure].prompt, "\n")
print(render_text(explanations[unsure], width=100, color=True))

# %% [markdown]
# The words "The main character is" are the same in every answer, so the model is sure of them. The name decides. At
# temperature 1 a token with a probability of 1 % is drawn once in a hundred draws. After such a token the model reads
# text that it has never seen, and the next tokens get improbable, too. So short answers are usually decoded greedily,
# or with top-p.
#
# ## Exercise
#
# Write top-p. `logits` is (V,). Return the logits with −∞ for every token outside the smallest set of most probable
# tokens whose probabilities sum to at least p.


# %% exercise
def top_p(logits, p):
    return logits


# %% check
from mini_chat_gpt.generation.sampling import keep_top_p

with course.check():
    torch.manual_seed(2)
    for p in (0.1, 0.5, 0.9, 0.99):
        some = 3 * torch.randn(50)
        expected, found = keep_top_p(some[None], p)[0], top_p(some.clone(), p)
        n_expected, n_found = expected.isfinite().sum().item(), found.isfinite().sum().item()
        assert n_found == n_expected, f"p = {p}: {n_found} tokens are kept, not {n_expected}"
        assert torch.equal(found, expected), f"p = {p}: the wrong tokens are kept, or kept logits have changed"


# %% solution
def top_p(logits, p):
    order = logits.argsort(descending=True)
    sums = logits.softmax(dim=-1)[order].cumsum(dim=0)
    n_kept = int((sums < p).sum()) + 1
    result = torch.full_like(logits, float("-inf"))
    result[order[:n_kept]] = logits[order[:n_kept]]
    return result


# %% [markdown]
# Read next to it: [generation/sampling.py](../mini_chat_gpt/generation/sampling.py) and
# [generation/token_probs.py](../mini_chat_gpt/generation/token_probs.py).
