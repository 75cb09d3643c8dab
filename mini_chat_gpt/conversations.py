"""Chat files: `from mini_chat_gpt.conversations import read_conversations`."""

from mini_chat_gpt.data.chat_files import read_conversations as read_conversations
