"""The keys by which chat records are recognized, and names of roles. `chats.keys` gives the file's names for these keys."""

from __future__ import annotations

LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "contents")
"""Keys of a list of messages, the preferred first, here and below."""
PROMPTS = ("instruction", "prompt", "question", "query", "user", "human", "input")
REPLIES = ("output", "response", "completion", "answer", "answers", "assistant", "bot", "reply")
PAIRS = (("instruction", "output"), ("prompt", "completion"), ("question", "answer"))
"""A prompt and its reply that are taken together where there are several."""
EXTRAS = ("input", "context")
"""Texts that are put under the prompt."""
SYSTEMS = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
PREFERENCE = ("chosen", "rejected")
LABELS = ("label", "kto_tag")
TOOLS = ("tools", "functions")
RECORD = (*LISTS, *PROMPTS, *REPLIES, "context", *SYSTEMS, "history", *PREFERENCE, *LABELS, *TOOLS, "text")
"""Keys of a record."""

ROLES = ("role", "from")
CONTENTS = ("content", "value", "text", "parts")
REASONING = ("reasoning", "reasoning_content", "thinking")
TRAINED = ("train", "weight")
MESSAGE = (*ROLES, *CONTENTS, *REASONING, *TRAINED, "tool_calls", "function_call", "name", "tool_call_id")
"""Keys of a message."""

CALL = "call"
"""The meaning of the role "function_call": an assistant's message whose text is the call of a tool, as JSON."""
ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": CALL,
}
"""Role of a file, in lower case -> our role, or CALL."""

KNOWN = frozenset({*RECORD, *MESSAGE, *ROLE_NAMES})
"""What `chats.keys` can have on its left side."""
USUAL = ("messages", "role", "content", "prompt", "response", "context", "system", "chosen", "rejected", "label")
"""Those that stand for all, in messages."""
