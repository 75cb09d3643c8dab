"""What is lost of chat files, as a share with a remedy."""

from tiny import tiny_tokenizer

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data.chat_cache import render_conversations
from mini_chat_gpt.data.chat_dataset import ChatDataset
from mini_chat_gpt.data.chat_files import Conversation
from mini_chat_gpt.data.chat_notes import percent

TOKENIZER = tiny_tokenizer()


def notes(lengths: list[int], context: int = 4096, n_exchanges: int = 1, **chats) -> list[str]:
    """The notes about chats whose exchanges have about these numbers of words, of one token each."""
    messages = [(Message("user", "Hi " * n), Message("assistant", "Yes.")) * n_exchanges for n in lengths]
    every = [Conversation(one, "messages", "a.jsonl", f"line {line}") for line, one in enumerate(messages, 1)]
    section, data = ChatsSection(**chats), DataSection(seq_len=64)
    return ChatDataset(render_conversations(every, TOKENIZER, section, data), section, data, 1).notes(
        "to train on", context
    )


def test_nothing_is_said_of_chats_that_fit():
    assert notes([3, 4, 5]) == []


def test_chats_that_are_cut_are_a_share_with_a_remedy():
    (note,) = notes([3] * 69 + [20] * 31, n_exchanges=4)
    first, *places = note.split("\n  ")
    assert first.startswith(
        "a.jsonl: 31 % of the chats to train on (31 of 100) are longer than 64 tokens and are cut into "
    )
    assert "so that no reply is lost. Remedy: data.seq_len=" in first
    assert "or another tokenizer: this one takes" in first
    assert places[0].startswith("line 70, line 71, line 72: it has ")
    assert places[-1] == "and 28 more"
    assert len(places) == 2


def test_lost_replies_are_a_share_of_all_replies():
    (note,) = notes([3] * 90 + [200] * 10)
    assert "10 % of the chats to train on (10 of 100) are longer than 64 tokens" in note
    assert "10 % of all replies are lost" in note
    (note,) = notes([3] * 90 + [20] * 10, n_exchanges=4, too_long="shorten")
    assert "tokens and lose their last messages; " in note
    assert "% of all replies are lost. Remedy:" in note
    (note,) = notes([3] * 90 + [20] * 10, n_exchanges=4, too_long="drop")
    assert "are dropped; 10 % of all replies are lost" in note


def test_the_remedy_is_a_context_in_which_nearly_all_fit_and_that_the_model_has():
    assert "Remedy: data.seq_len=256 (1.0 % are longer than that), or" in notes([3] * 50 + [100] * 49 + [150])[0]
    assert "Remedy: data.seq_len=128 (" in notes([3] * 50 + [200] * 50, context=128)[0]
    assert "are longer than that)" in notes([3] * 50 + [200] * 50, context=128)[0]
    assert "Remedy: data.seq_len=256 and a model with that context, or" in notes([3] * 50 + [100] * 50, context=64)[0]


def test_percentages_are_short_and_never_nothing():
    assert [percent(*pair) for pair in ((31, 100), (1, 3000), (1, 10**6), (0, 5), (1, 8), (3, 1000), (0, 0))] == [
        *("31 %", "less than 0.1 %", "less than 0.1 %", "0 %", "12 %", "0.3 %", "0 %")
    ]
