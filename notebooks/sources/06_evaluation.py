# %% [markdown]
# # Evaluation: baselines and intervals
#
# At the end you can
#
# - score replies to held-out questions,
# - say what a score means, with the score of a simple rule next to it,
# - give the interval of a score, and say how many questions you need,
# - compare two models on the same questions.

# %%
import numpy as np

import course
from mini_chat_gpt.evaluation.held_out import held_out_tasks

base, base_tokenizer = course.base()
tuned, tokenizer = course.tuned()

# %% [markdown]
# ## Held-out questions
#
# The stories are not in the training data. They form two groups. The plots of "seen" occur in the training data, with
# other names and objects. The plots of "unseen" don't. A model that has memorized stories is worse on the second
# group.

# %%
kinds = ["main_character", "ending", "dialogue"]
groups = held_out_tasks(course.VALID, [(base, base_tokenizer), (tuned, tokenizer)], n=30, kinds=kinds)
print({name: len(tasks) for name, tasks in groups.items()})
print(groups["unseen"][0].prompt)
print("->", groups["unseen"][0].target)

# %%
from mini_chat_gpt.evaluation.capabilities import evaluate

before = evaluate(base, base_tokenizer, groups)
after = evaluate(tuned, tokenizer, groups)

# %% [markdown]
# ## A score needs a baseline
#
# "70 % of the answers about the ending are right" sounds good. But half of the questions have the answer "yes". A
# rule that always says yes is right for 50 %. For names the rule is the most common one.

# %%
print("kind            group   base  tuned  baseline  rule")
for group, results in after.groups.items():
    for kind, scores in results.items():
        first = before.groups[group][kind]["accuracy"]
        baseline, rule = scores["baseline"]["accuracy"], scores["baseline"]["rules"]["accuracy"]
        print(f"{kind:15} {group:6} {first:5.0%} {scores['accuracy']:6.0%} {baseline:9.0%}  {rule}")

# %% [markdown]
# ## A score needs an interval
#
# With 30 questions, chance moves a score by many percentage points. The interval says which true scores fit what was
# measured. For right or wrong answers the program uses Wilson's interval.

# %%
from mini_chat_gpt.evaluation.confidence import wilson

for right, n in ((15, 30), (30, 30), (150, 300), (1500, 3000)):
    low, high = wilson([1.0] * right + [0.0] * (n - right))
    print(f"{right:4} of {n:4} right: {right / n:4.0%}, interval {low:.1%} to {high:.1%}")

# %% [markdown]
# Four times as many questions halve the interval. And 30 of 30 doesn't mean that the model never fails.
#
# Does a 95 % interval contain the true score in 95 % of all measurements? Simulate a model that is right with
# probability 0.8:

# %%
rng = np.random.default_rng(0)
inside = 0
for _ in range(2000):
    low, high = wilson((rng.random(30) < 0.8).astype(float))
    inside += low <= 0.8 <= high
print(f"{inside / 2000:.1%} of the intervals contain 0.8")

# %% [markdown]
# ## Two models on the same questions
#
# Both models answered the same questions. So compare them question by question: that is more exact than two
# intervals. The *sign-flip test* asks how often chance alone gives such a difference. If both models were equally
# good, the sign of each difference could as well be the other one.

# %%
from mini_chat_gpt.evaluation.capabilities import differences

print("kind            group   difference  interval           p")
for one in differences(before, after):
    d = one.paired
    print(f"{one.kind:15} {one.group:6} {d.difference:+10.0%}   {d.low:+.0%} to {d.high:+.0%}{'':5} {d.p:.5f}")

# %% [markdown]
# A p below 0.05 is called significant. If you look at twenty differences, one of them is expected to be below 0.05 by
# chance.
#
# ## Read the replies
#
# Numbers hide what goes wrong. Always read some of the wrong replies.

# %%
wrong = [item for item in after.items if item.scores["accuracy"] == 0]
for item in wrong[:6]:
    print(f"{item.task.kind:15} expected {item.task.target!r}, reply {item.reply!r}")

# %% [markdown]
# ## Exercise
#
# Many scores are not right or wrong, for example the overlap of two texts. Their interval comes from the *bootstrap*:
# draw as many items as there are, with replacement, and take the mean. Repeat this 2,000 times. The interval reaches
# from the 2.5th to the 97.5th percentile of the means. Write `interval(values)`, which returns (low, high).


# %% exercise
def interval(values):
    rng = np.random.default_rng(0)
    return values.mean(), values.mean()


# %% check
from mini_chat_gpt.evaluation.confidence import bootstrap

with course.check():
    rng = np.random.default_rng(5)
    for values in (rng.random(40), rng.exponential(size=80), np.array([0.0, 1.0] * 20)):
        expected, found = bootstrap(values), interval(values)
        width = expected[1] - expected[0]
        for name, one, other in zip(("low", "high"), expected, found):
            assert abs(one - other) < 0.1 * width, f"{name} is {other:.3f}, not about {one:.3f}"


# %% solution
def interval(values):
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(2000)]
    return tuple(np.percentile(means, [2.5, 97.5]))


# %% [markdown]
# Read next to it: [evaluation/confidence.py](../mini_chat_gpt/evaluation/confidence.py) and
# [evaluation/baselines.py](../mini_chat_gpt/evaluation/baselines.py). `mini-chat-gpt evaluate` writes all of this
# into a report: [Evaluation](../docs/evaluation.md).
