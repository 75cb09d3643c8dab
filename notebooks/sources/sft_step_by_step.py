# %% [markdown]
# # Supervised fine-tuning, step by step
#
# A base model continues text. Supervised fine-tuning (SFT) turns it into a model that answers. This notebook goes
# through every step with a model of 0.4 million parameters. At the end you can
#
# - say how text becomes token ids, and how a conversation becomes one sequence of ids,
# - say which tokens are supervised, and why only these,
# - compute the loss of a conversation with a few lines of PyTorch, and compare it with the program's,
# - fine-tune a model, and show with numbers what it has learned.
#
# You need Python and some linear algebra. Everything runs on a CPU. The first run trains two small models, which
# takes a few minutes. They are kept in `runs/course`, where the other notebooks find them.
#
# ![from a story to a reply](figures/data-flow.svg)

# %%
import torch

import course

base, base_tokenizer = course.base()
print(f"{base.n_parameters():,} parameters, {base_tokenizer.vocab_size} entries in the vocabulary")

# %% [markdown]
# The base model was trained on 3,000 generated stories. It predicts the next token. So it continues the beginning of
# a story:

# %%
from mini_chat_gpt.generation import generate

print(generate(base, base_tokenizer, ["Once upon a time"], max_new_tokens=60, temperature=0)[0])

# %% [markdown]
# ## 1. The tokenizer
#
# A model reads numbers. The tokenizer splits a text into pieces and gives each piece an id. Frequent words are one
# piece, rare words several. Decoding the ids returns exactly the same text.

# %%
text = "Once there was a girl named Nelly. Nelly whispered."
ids = base_tokenizer.encode(text)
print(ids)
print([base_tokenizer.decode([i]) for i in ids])
assert base_tokenizer.decode(ids) == text

# %% [markdown]
# ## 2. The chat format
#
# A conversation is one sequence of ids. *Control tokens* separate the roles: `<|user|>`, `<|assistant|>`, and
# `<|endoftext|>` after each reply. They are ids that no text can produce. `render` builds the sequence.

# %%
from mini_chat_gpt.chat_format import Message, render

conversation = [
    Message("user", "Sue had a red kite. Who had a kite?"),
    Message("assistant", "The main character is Sue."),
]
ids, loss_mask = render(conversation, base_tokenizer)
for i, supervised in list(zip(ids, loss_mask))[-12:]:
    print(f"{i:5}  {base_tokenizer.decode([i], control=True)!r:18} {'supervised' if supervised else ''}")

# %% [markdown]
# ## 3. The loss mask
#
# The model reads all tokens, but it learns to predict the reply only. These tokens are *supervised*. The
# `<|endoftext|>` at the end is one of them: the model must learn when to stop. The question is not supervised,
# because the user writes it.

# %%
course.in_color(ids, loss_mask, base_tokenizer)

# %% [markdown]
# ## 4. The loss, written out
#
# At each position the model gives a score (logit) to every entry of the vocabulary. The softmax turns the scores into
# probabilities. The loss of a token is −log of the probability that the model gave it *from the tokens before it*. So
# the logits at position *i* − 1 belong to the token at position *i*.

# %%
row = torch.tensor([ids])
logits = base(row)[0]  # (T, V)
log_probabilities = logits.log_softmax(dim=-1)
losses = [-log_probabilities[i - 1, ids[i]] for i in range(1, len(ids)) if loss_mask[i]]
loss = torch.stack(losses).mean()
print(f"{len(losses)} supervised tokens, mean loss {loss.item():.4f}")

# %% [markdown]
# The program computes the same from a *packed batch*: several conversations in one row, with the positions that
# predict a supervised token and the labels that they must predict.

# %%
import numpy as np

from mini_chat_gpt.data.batching import Example, collate

example = Example(np.array(ids, dtype=np.int32), np.array(loss_mask), weight=1.0, kind="chat")
batch = collate([example], pad_to_multiple_of=1)
sums = base(batch)
program_loss = sums.weighted_sum / batch.weights.sum()
print(f"the program's loss {program_loss.item():.4f}, difference {abs(program_loss - loss).item():.0e}")
assert torch.isclose(program_loss, loss, atol=1e-5)

# %% [markdown]
# ## 5. One step, written out
#
# The gradient says how the loss changes with each weight. A small step against it makes the loss smaller. This is
# gradient descent; the program uses an optimizer that scales the step (see `04_training_step`).
#
# ![the formula of a step](figures/step.svg)

# %%
import copy

model = copy.deepcopy(base)


def loss_of(model):
    sums = model(batch)
    return sums.weighted_sum / batch.weights.sum()


before = loss_of(model)
before.backward()
with torch.no_grad():
    for weight in model.parameters():
        weight -= 0.05 * weight.grad
after = loss_of(model)
print(f"loss before the step {before.item():.3f}, after it {after.item():.3f}")
assert after < before

# %% [markdown]
# ## 6. A training run
#
# The data are questions about stories whose answers are known: who is the main character, is the ending happy, do the
# characters talk? `course.yaml` has the settings. The run is the one of `mini-chat-gpt sft --config course.yaml`. A
# run that is finished is not repeated.

# %%
tuned, tokenizer = course.tuned()

# %%
from mini_chat_gpt.training.loss_curves import draw_figure, read_curves

course.picture(draw_figure({"fine-tuning": read_curves(course.FOLDER / "tuned")}))

# %% [markdown]
# The validation loss is measured on stories that the model has never seen. If it rises while the training loss falls,
# the model memorizes.
#
# ## 7. Before and after
#
# The same questions about held-out stories, for both models. The base model continues the text of the prompt, or ends it.

# %%
from mini_chat_gpt.evaluation.held_out import held_out_tasks

kinds = ["main_character", "ending", "dialogue"]
groups = held_out_tasks(course.VALID, [(tuned, tokenizer)], n=2, kinds=kinds)
tasks = groups["seen"]
prompts = [task.prompt for task in tasks]
replies_before = generate(base, base_tokenizer, prompts, max_new_tokens=24, temperature=0)
replies_after = generate(tuned, tokenizer, prompts, max_new_tokens=24, temperature=0)
print(prompts[0])
for task, one, other in zip(tasks, replies_before, replies_after):
    print(f"\n{task.kind}: {task.target}\n  before: {one!r}\n  after:  {other!r}")

# %% [markdown]
# Two stories say little. `06_evaluation` counts the right answers on many stories and compares them with baselines.
#
# ## 8. Why did it say that?
#
# In a chat, `/why` shows the probability of every token of the last reply. It runs the model over the prompt and the
# reply again. A low probability is a place where the model could have continued in another way.

# %%
from mini_chat_gpt.chat.token_probs_view import render_text
from mini_chat_gpt.generation.text import generate_replies, prompt_ids
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.token_probs import explain

greedy = Sampling(max_new_tokens=24, temperature=0)
prompt = prompt_ids(tokenizer, prompts[0])
[reply] = generate_replies(tuned, tokenizer, prompts[:1], greedy)
explanation = explain(tuned, tokenizer, prompt, reply.ids, reply.stop_id, greedy)
print(render_text(explanation, width=100, color=True))

# %% [markdown]
# In the stored output the first reply has a typical mistake: "Edie", not "Eddie". The table shows where. After " E" and
# "d" the model wrote "ie" with a probability of 91 %. The second "d" has only 5 %. A small model copies a rare name badly.
#
# ## Exercise
#
# The *perplexity* of a reply is e to the power of its mean loss. Write it for a question and an answer: render the
# conversation, find the supervised tokens, and take the mean of their losses. A model that is sure of the answer has
# a perplexity near 1.


# %% exercise
def perplexity(model, tokenizer, question, answer):
    ids, loss_mask = render([Message("user", question), Message("assistant", answer)], tokenizer)
    ...


# %% check
with course.check(), torch.no_grad():
    for task in tasks[:3]:
        answer_ids = tokenizer.encode(task.target)
        of_program = explain(
            tuned, tokenizer, prompt_ids(tokenizer, task.prompt), answer_ids, tokenizer.end_id, greedy
        ).perplexity
        of_student = perplexity(tuned, tokenizer, task.prompt, task.target)
        assert of_student is not None, "the function returns nothing"
        assert abs(float(of_student) - of_program) < 1e-3 * of_program, f"{float(of_student):.4f}, not {of_program:.4f}"


# %% solution
def perplexity(model, tokenizer, question, answer):
    ids, loss_mask = render([Message("user", question), Message("assistant", answer)], tokenizer)
    log_probabilities = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    losses = [-log_probabilities[i - 1, ids[i]] for i in range(1, len(ids)) if loss_mask[i]]
    return torch.stack(losses).mean().exp().item()


# %% [markdown]
# ## What next
#
# Chat with the model: `mini-chat-gpt chat --checkpoint runs/course/tuned` in the folder of the notebooks. The
# notebooks `01` to `06` look at each part in detail. [How it works](../docs/how-it-works.md) leads through the code.
