# %% [markdown]
# # Find the leak
#
# Held-out data measure what a model can do with questions that it has not seen. If they occur in the training data
# too, the score measures memory. This is called a *leak*, and it is one of the most frequent mistakes. This is a
# longer exercise. At the end you can
#
# - find a leak with `mini-chat-gpt inspect`,
# - show how much a score is worth where data leak,
# - find leaks that no comparison of texts finds,
# - split data so that nothing leaks.

# %%
import json
from random import Random

import course

course.base()
FOLDER = course.FOLDER / "leak"
FOLDER.mkdir(exist_ok=True)

# %% [markdown]
# ## The data
#
# The chats are questions about animals. Two people wrote them down, so some are in the file twice, and some questions
# have two answers.

# %%
ANIMALS = {
    "cat": ("a house", "fish"), "cow": ("a barn", "grass"), "bee": ("a hive", "nectar"), "bear": ("a cave", "berries"),
    "fox": ("a den", "mice"), "duck": ("a pond", "seeds"), "goat": ("a barn", "leaves"), "bat": ("a tree", "moths"),
    "horse": ("a stable", "hay"), "frog": ("a pond", "flies"), "mouse": ("a hole", "cheese"), "hen": ("a coop", "corn"),
    "wolf": ("a den", "meat"), "rabbit": ("a hole", "carrots"), "spider": ("a web", "flies"), "wasp": ("a nest", "fruit"),
    "swan": ("a lake", "weeds"), "beaver": ("a lodge", "bark"), "lion": ("a cave", "meat"), "crab": ("a shell", "algae"),
}  # fmt: skip


def chats_about(animal):
    home, food = ANIMALS[animal]
    lives, eats = f"A {animal} lives in {home}.", f"A {animal} eats {food}."
    questions = {
        f"Where does a {animal} live?": [lives, f"In {home}.", lives],
        f"Where does a wild {animal} live?": [lives],
        f"What does a {animal} eat?": [eats, f"It eats {food}.", eats],
        f"What does a {animal} like to eat?": [eats],
    }
    return [(animal, question, answer) for question, answers in questions.items() for answer in answers]


chats = [chat for animal in ANIMALS for chat in chats_about(animal)]
Random(0).shuffle(chats)
print(len(chats), "chats, for example")
for _, question, answer in chats[:4]:
    print(f"  {question} -> {answer}")


# %%
def write(name, part):
    lines = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for _, question, answer in part
    ]
    path = FOLDER / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


# The obvious split: the chats are in random order, and every fifth one is held out.
leaky_valid = chats[::5]
leaky_train = [chat for n, chat in enumerate(chats) if n % 5]

# %% [markdown]
# ## What `inspect` reports
#
# `mini-chat-gpt inspect train.jsonl chats.valid_files=valid.jsonl` looks at both files as a training run would. Here
# is the same in Python, with the part about data that are left out, repeated or leak.

# %%
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.diagnostics.inspect_data import inspect
from mini_chat_gpt.training.run_tokenizer import tokenizer_for


def report(train, valid):
    """What inspect says about data that leak or repeat."""
    files = [f"chats.files={write('train.jsonl', train)}", f"chats.valid_files={write('valid.jsonl', valid)}"]
    config = load_config("course.yaml", files)
    tokenizer, context, _ = tokenizer_for(config, None)
    inspection = inspect(config, tokenizer, context)
    [section] = [section for section in inspection.sections if section.title.startswith("Left out")]
    return section.notes


for note in report(leaky_train, leaky_valid):
    print(note, "\n")

# %% [markdown]
# Whole chats are in both parts, and other held-out chats begin with a question of the training data.
#
# ## What a leak does to a score
#
# A lookup table can't understand anything. It looks for the training question with the most words of the new question,
# where a rare word counts more than a frequent one, and returns its answer. An answer is right here if it ends with the
# right word. The score of such a table on held-out chats should be low.

# %%
from collections import Counter


def words(text):
    return set(text.lower().strip(".?").split())


def lookup(train, question):
    counts = Counter(word for chat in train for word in words(chat[1]))
    return max(train, key=lambda chat: sum(1 / counts[word] for word in words(chat[1]) & words(question)))[2]


def score(train, valid):
    right = [lookup(train, question).split()[-1] == answer.split()[-1] for _, question, answer in valid]
    return sum(right) / len(right)


print(f"right answers of a lookup table: {score(leaky_train, leaky_valid):.0%}")

# %% [markdown]
# ## Remove the equal questions
#
# A first repair: leave out of the training data every chat whose question is held out.

# %%
held_out_questions = {question for _, question, _ in leaky_valid}
without_equal = [chat for chat in leaky_train if chat[1] not in held_out_questions]
for note in report(without_equal, leaky_valid):
    print(note, "\n")
print(f"right answers of a lookup table: {score(without_equal, leaky_valid):.0%}")

# %% [markdown]
# `inspect` no longer reports a leak. But the lookup table still answers: the same *fact* is in the training data with
# another question. No comparison of texts finds this with certainty. You must know how the data were made: here,
# several chats belong to one animal.
#
# ## Exercise
#
# Write `split(chats)`, which returns (train, valid). Every chat is in one of the two parts. From 10 % to 30 % of the
# chats are held out. No animal is in both parts. The result is the same in each call.


# %% exercise
def split(chats):
    valid = chats[::5]
    train = [chat for n, chat in enumerate(chats) if n % 5]
    return train, valid


# %% check
with course.check():
    train, valid = split(list(chats))
    assert sorted([*train, *valid]) == sorted(chats), "every chat must be in exactly one part"
    assert 0.1 <= len(valid) / len(chats) <= 0.3, f"{len(valid) / len(chats):.0%} of the chats are held out"
    both = sorted({chat[0] for chat in train} & {chat[0] for chat in valid})
    assert not both, f"{len(both)} animals are in both parts, for example {both[0]}"
    leaks = [note for note in report(train, valid) if note.startswith("Held-out chats")]
    assert not leaks, leaks[0]
    assert split(list(chats)) == (train, valid), "another call gives another split"
    rate = score(train, valid)
    assert rate < 0.2, f"the lookup table still gives {rate:.0%} right answers"


# %% solution
def split(chats):
    animals = sorted({animal for animal, _, _ in chats})
    held_out = set(Random(0).sample(animals, len(animals) // 5))
    train = [chat for chat in chats if chat[0] not in held_out]
    valid = [chat for chat in chats if chat[0] in held_out]
    return train, valid


# %% [markdown]
# Now the score of the lookup table is low, and a better score of a model means something. The program splits your
# chats by their first question, so equal questions are never in both parts. Splitting by what the chats are *about*
# is your task: write two files, and name them with `chats.files` and `chats.valid_files` ([Your own
# chats](../docs/your-own-chats.md)).
