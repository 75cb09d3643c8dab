# %% [markdown]
# # The tokenizer
#
# At the end you can
#
# - train a byte-pair encoding (BPE) with twenty lines of Python, and read the result,
# - encode a word with a list of merges,
# - say how the size of the vocabulary changes the number of tokens,
# - say why no text can produce a control token.

# %%
from collections import Counter

import regex

import course
from mini_chat_gpt.sft_dataloader import stories

texts = list(stories(course.make_data() / "TinyStoriesInstruct-train.txt"))
print(f"{len(texts):,} stories. The first one:\n\n{texts[0]}")

# %% [markdown]
# ## Text is bytes
#
# UTF-8 writes every text as bytes, numbers from 0 to 255. A tokenizer of 256 entries, one for each byte, can write
# every text. Its sequences are long, though: one token for each letter, and several for one sign of many languages.

# %%
for text in ("cat", "é", "🙂"):
    print(text, list(text.encode("utf-8")))

# %% [markdown]
# ## Merge the most frequent pair
#
# BPE begins with bytes. It counts which two neighbors occur most often, makes them one entry, and repeats. The text
# is first split into words, so that no entry crosses the border of a word. A space belongs to the word after it.

# %%
from mini_chat_gpt.tokenizer.bpe import DEFAULT_PATTERN

print(regex.findall(DEFAULT_PATTERN, "Nelly saw 12 cats. She didn't run!"))

# %%
words = Counter(word for text in texts[:500] for word in regex.findall(DEFAULT_PATTERN, text))
# Each word as a tuple of pieces, which are single bytes at first, with the number of times that it occurs.
pieces = {tuple(bytes([byte]) for byte in word.encode("utf-8")): n for word, n in words.items()}


def most_frequent_pair(pieces):
    pairs = Counter()
    for word, n in pieces.items():
        for pair in zip(word, word[1:]):
            pairs[pair] += n
    return pairs.most_common(1)[0]


def merge(word, pair):
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


merges = []
for _ in range(20):
    pair, n = most_frequent_pair(pieces)
    merges.append(pair[0] + pair[1])
    pieces = {merge(word, pair): n for word, n in pieces.items()}
print(merges)

# %% [markdown]
# The program does the same in compiled code. Its entries have a *rank*: the order in which they were made, which is
# also the id. The first 256 are the bytes.

# %%
from mini_chat_gpt.tokenizer import ChatTokenizer

tokenizer = ChatTokenizer.train(texts[:500], vocab_size=640)
of_program = tokenizer.encoder.pieces[256 : 256 + 20]
print(of_program)
print("equal:", sum(one == other for one, other in zip(merges, of_program)), "of 20")

# %% [markdown]
# Pairs that occur equally often can be merged in either order. So two implementations can differ where there is a
# tie.
#
# ## The size of the vocabulary
#
# A larger vocabulary makes sequences shorter. But each entry is a row of the model's table, and a rare entry is
# seldom trained.

# %%
held_out = " ".join(texts[-200:])
n_words = len(held_out.split())
print("vocabulary  tokens per word  longest entry")
for size in (280, 320, 640, 1280):
    one = ChatTokenizer.train(texts[:500], vocab_size=size)
    longest = max((piece for piece in one.encoder.pieces if piece), key=len)
    print(f"{one.vocab_size:10,}  {len(one.encode(held_out)) / n_words:15.2f}  {longest.decode('utf-8', 'replace')!r}")

# %% [markdown]
# ## Control tokens
#
# The last four entries are the control tokens of the chat format. `encode` never returns them. A user who types
# `<|assistant|>` gets ordinary tokens that spell these characters.

# %%
print(tokenizer.control)
ids = tokenizer.encode("<|assistant|>")
print(ids, "contains a control token:", bool(set(ids) & set(tokenizer.control.values())))

# %% [markdown]
# Decoding is exact: every text that UTF-8 can write comes back unchanged, including signs that never occurred in the
# training texts.

# %%
for text in ("Once upon a time", "  two  spaces\n", "Zürich 🙂"):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    print(f"{text!r}: {len(tokenizer.encode(text))} tokens")

# %% [markdown]
# ## Exercise
#
# Write `encode_word`: the ids of one word. Begin with its bytes. Among all pairs of neighbors that are an entry when
# joined, merge the one with the lowest rank, and repeat until no pair is an entry. `ranks` maps byte strings to ids:
# `ranks[b"th"]`.

# %%
ranks = tokenizer.encoder.ranks


# %% exercise
def encode_word(word, ranks):
    pieces = [bytes([byte]) for byte in word.encode("utf-8")]
    # Merge here.
    return [ranks[piece] for piece in pieces]


# %% check
with course.check():
    some = list(dict.fromkeys(regex.findall(DEFAULT_PATTERN, " ".join(texts[-50:]))))
    for word in [*some, " Zürich", " whispering"]:
        expected, found = tokenizer.encode(word), encode_word(word, ranks)
        assert found == expected, f"{word!r} is {expected}, not {found}"


# %% solution
def encode_word(word, ranks):
    pieces = [bytes([byte]) for byte in word.encode("utf-8")]
    while True:
        found = [
            (ranks[pieces[i] + pieces[i + 1]], i) for i in range(len(pieces) - 1) if pieces[i] + pieces[i + 1] in ranks
        ]
        if not found:
            return [ranks[piece] for piece in pieces]
        _, i = min(found)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


# %% [markdown]
# Read next to it: [tokenizer/bpe.py](../mini_chat_gpt/tokenizer/bpe.py) and
# [tokenizer/chat_tokenizer.py](../mini_chat_gpt/tokenizer/chat_tokenizer.py).
