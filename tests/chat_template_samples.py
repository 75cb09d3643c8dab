"""Chat templates that behave like those of known models, written for these tests, and a small tokenizer with their control tokens."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
SMOLLM2 = """{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
_QWEN_TOOLS = """
{%- macro calls(message) -%}
    {%- for call in message.tool_calls -%}
        {%- set call = call.function if call.function else call -%}
        {{- ('\\n' if message.content or not loop.first else '') + '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
        {{- (call.arguments if call.arguments is string else call.arguments | tojson) + '}\\n</tool_call>' -}}
    {%- endfor -%}
{%- endmacro -%}
{%- macro result(message, first, last) -%}
    {{- '<|im_start|>user' if first -}}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
    {{- '<|im_end|>\\n' if last -}}
{%- endmacro -%}
{%- set explained -%}
    Functions that you can call are between <tools> and </tools>.
    {{- '\\n<tools>' -}}
    {%- for tool in tools or [] -%}{{- '\\n' ~ tool | tojson -}}{%- endfor -%}
    {{- '\\n</tools>' -}}
{%- endset -%}
"""
QWEN25 = (
    _QWEN_TOOLS
    + """
{%- set own = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' -%}
{%- set system = messages[0].content if messages[0].role == 'system' else own -%}
{{- '<|im_start|>system\\n' ~ system ~ ('\\n\\n' ~ explained if tools else '') ~ '<|im_end|>\\n' -}}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {{- result(message, messages[loop.index0 - 1].role != 'tool', loop.last or messages[loop.index].role != 'tool') -}}
    {%- elif message.role == 'assistant' and message.tool_calls -%}
        {{- '<|im_start|>assistant\\n' ~ message.content ~ calls(message) ~ '<|im_end|>\\n' -}}
    {%- elif not (loop.first and message.role == 'system') -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}
"""
)
_QWEN3_TURNS = """
{%- if tools -%}
    {%- set before = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}
    {{- '<|im_start|>system\\n' ~ before ~ explained ~ '<|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
    {{- '<|im_start|>system\\n' ~ messages[0].content ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- set question = namespace(at=messages | length - 1, seen=false) -%}
{%- for message in messages | reverse -%}
    {%- if message.role == 'user' and not question.seen -%}
        {%- if not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) -%}
            {%- set question.seen = true -%}
            {%- set question.at = messages | length - loop.index -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {{- result(message, messages[loop.index0 - 1].role != 'tool', loop.last or messages[loop.index].role != 'tool') -}}
    {%- elif message.role == 'assistant' -%}
        {%- set words, thought = [message.content, ''] -%}
        {%- if message.reasoning_content is string -%}
            {%- set thought = message.reasoning_content -%}
        {%- elif '</think>' in words -%}
            {%- set thought = (words.split('</think>') | first).rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
            {%- set words = (words.split('</think>') | last).lstrip('\\n') -%}
        {%- endif -%}
        {%- if loop.index0 > question.at and (loop.last or thought) -%}
            {%- set words = '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' ~ words.lstrip('\\n') -%}
        {%- endif -%}
        {{- '<|im_start|>assistant\\n' ~ words ~ (calls(message) if message.tool_calls else '') ~ '<|im_end|>\\n' -}}
    {%- elif not (loop.first and message.role == 'system') -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
"""
QWEN3 = (
    _QWEN_TOOLS
    + _QWEN3_TURNS
    + """
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
)
# Always thinks: the prompt for a reply opens the reasoning.
THINKER = (
    _QWEN_TOOLS
    + _QWEN3_TURNS
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}\n"
)
LLAMA3 = """{% set loop_messages = messages %}
{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{- content -}}
{% endfor %}
{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{% endif %}
"""
LLAMA32 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
GEMMA3 = """{{- bos_token -}}
{%- set turns, start = [messages, ''] -%}
{%- if messages[0].role == 'system' -%}
    {%- set turns, start = [messages[1:], messages[0].content ~ '\n\n'] -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if turn.role != ('assistant' if loop.index0 % 2 else 'user') -%}
        {{- raise_exception('The roles do not alternate') -}}
    {%- endif -%}
    <start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}{{ '\n' -}}
    {{- start if loop.first -}}
    {{- turn.content | trim if turn.content is string else raise_exception('Not a text') -}}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{{- '<start_of_turn>model\n' if add_generation_prompt -}}
"""
PHI3 = """{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}
"""
# Version 1: the tags are plain text. A system message is a part of the first user message.
MISTRAL = """{{- bos_token -}}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}
{%- for message in turns -%}
    {%- if message.role not in ('user', 'assistant') or (message.role == 'user') == (loop.index0 % 2 == 1) -%}
        {{- raise_exception('Roles must alternate') -}}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        {%- set begin = messages[0].content ~ '\n\n' if loop.first and messages[0].role == 'system' else '' -%}
        {{- ' [INST] ' ~ begin ~ message.content ~ ' [/INST]' -}}
    {%- else -%}
        {{- ' ' ~ message.content ~ eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
# Version 3: the tags are control tokens. A system message is a part of the last message, if that is a user's.
MISTRAL3 = """{{- bos_token -}}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}
{%- set asked = turns | selectattr('role', 'equalto', 'user') | list -%}
{%- for message in turns -%}
    {%- if message.role == 'user' -%}
        {%- if tools and message == asked[-1] -%}
            {{- '[AVAILABLE_TOOLS] [' -}}
            {%- for tool in tools -%}
                {{- '{"type": "function", "function": {' -}}
                {%- for key, value in tool.function.items() -%}
                    {{- '"' ~ key ~ '": ' ~ ('"' ~ value ~ '"' if value is string else value | tojson) ~ ('' if loop.last else ', ') -}}
                {%- endfor -%}
                {{- '}}' ~ (']' if loop.last else ', ') -}}
            {%- endfor -%}
            {{- '[/AVAILABLE_TOOLS]' -}}
        {%- endif -%}
        {%- set begin = messages[0].content ~ '\n\n' if loop.last and messages[0].role == 'system' else '' -%}
        {{- '[INST] ' ~ begin ~ message.content ~ '[/INST]' -}}
    {%- elif message.tool_calls is defined and message.tool_calls -%}
        {{- '[TOOL_CALLS] [' -}}
        {%- for call in message.tool_calls -%}
            {%- if not call.id is defined or call.id | length != 9 -%}{{- raise_exception('The id of a call has 9 letters') -}}{%- endif -%}
            {{- (call.function | tojson)[:-1] ~ ', "id": "' ~ call.id ~ '"}' ~ (']' if loop.last else ', ') -}}
        {%- endfor -%}
        {{- eos_token -}}
    {%- elif message.role == 'assistant' -%}
        {{- ' ' ~ message.content ~ eos_token -}}
    {%- elif message.role == 'tool' -%}
        {{- '[TOOL_RESULTS] {"content": ' ~ message.content | string ~ ', "call_id": "' ~ message.tool_call_id ~ '"}[/TOOL_RESULTS]' -}}
    {%- else -%}
        {{- raise_exception('Unknown role') -}}
    {%- endif -%}
{%- endfor -%}
"""
MACRO = """{%- macro turn(name, text, mark='##') -%}
{{ mark }}{{ name ~ ': ' }}{% filter trim %}{{ text }}{% endfilter %}<|im_end|>
{% endmacro -%}
{%- set ns = namespace(count=0) -%}
{%- for m in messages if m.role in ['system', 'user', 'assistant'] -%}
{%- set ns.count = ns.count + 1 -%}
{%- set body -%}<|im_start|>
{%- generation -%}
{{ turn(m.role, m.content, mark=loop.mark | default('>>')) }}{% endgeneration %}{%- endset -%}
{{ body }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>>>assistant: {% endif -%}
"""

SUPPORTED = {
    "chatml": CHATML,
    "smollm2": SMOLLM2,
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
    "thinker": THINKER,
    "llama3": LLAMA3,
    "llama3.2": LLAMA32,
    "zephyr": ZEPHYR,
    "gemma3": GEMMA3,
    "phi3": PHI3,
    "mistral": MISTRAL,
    "mistral3": MISTRAL3,
}

CONTROL = (
    *("<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<|end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "[INST]"),
    *("[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
)
PLAIN_ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "[INST]", "[/INST]")
BEGIN = {"llama3": "<|begin_of_text|>", "llama3.2": "<|begin_of_text|>"}
"""Format -> its BOS; the others have <s>. All have </s> as their EOS."""

_TEXTS = [
    'Once upon a time there was a little girl named Lily. She had a red ball.\n\nShe said: "Hello!" user assistant system'
] * 20 + ["<|im_start|>user\n hello  <|assistant|>\n\n\n model 123 You are a helpful assistant. Today Date: "] * 20


class SmallTokenizer:
    """What rendering needs of a tokenizer, over a small byte-level BPE of the `tokenizers` library."""

    bos_id = None
    chat_format = None
    end_id = 1

    def __init__(self, content: Any, full: Any, control: dict[str, int]) -> None:
        self.content, self.full, self.control = content, full, control
        letters = _byte_of_letter()
        vocab = content.get_vocab()
        self.pieces = [b""] * (max(vocab.values()) + 1)
        for piece, token_id in vocab.items():
            if token_id not in control.values():
                self.pieces[token_id] = bytes(letters[letter] for letter in piece)

    def encode(self, text: str) -> list[int]:
        return self.content.encode(text, add_special_tokens=False).ids

    encode_after_control = encode

    def byte_lengths(self, ids: np.ndarray, start: bool = True) -> np.ndarray:
        return np.array([len(self.pieces[token_id]) for token_id in ids.tolist()], dtype=np.int64)

    def decode(self, ids: list[int]) -> str:
        names = {token_id: name for name, token_id in self.control.items()}
        return b"".join(names[one].encode() if one in names else self.pieces[one] for one in ids).decode(
            errors="replace"
        )


def _byte_of_letter() -> dict[str, int]:
    from mini_chat_gpt.tokenizer.hf_export import byte_letters

    return {letter: byte for byte, letter in enumerate(byte_letters())}


@lru_cache(maxsize=4)
def small_tokenizer(plain_roles: bool = False, strips: tuple[tuple[str, bool, bool], ...] = ()) -> SmallTokenizer:
    """A byte-level BPE with CONTROL as added tokens.

    plain_roles: <|user|>, [INST] and so on are ordinary text. strips: (name, lstrip, rstrip) of tokens that swallow white space.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    names = [name for name in CONTROL if not (plain_roles and name in PLAIN_ROLES)]
    flags = {name: (left, right) for name, left, right in strips}
    full = Tokenizer(models.BPE())
    full.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    full.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    full.train_from_iterator(_TEXTS, trainer)
    parts = json.loads(full.to_str())
    for token in parts["added_tokens"]:
        token["lstrip"], token["rstrip"] = flags.get(token["content"], (False, False))
        token["special"] = "think" not in token["content"] and "tool_" not in token["content"]
    full = Tokenizer.from_str(json.dumps(parts))
    control = {token["content"]: token["id"] for token in parts["added_tokens"]}
    content = Tokenizer.from_str(json.dumps(parts | {"added_tokens": []}))
    return SmallTokenizer(content, full, control)


@lru_cache
def reasoning_tokenizer() -> Any:
    """A ChatTokenizer with a template that prints tool calls, and the reasoning of the last exchange only."""
    from tiny import tiny_tokenizer  # here: others need no PyTorch

    from mini_chat_gpt.tokenizer.chat_setup import template_format

    tokenizer = tiny_tokenizer()
    names = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_control_tokens((*names, "<tool_response>", "</tool_response>"))
    tokenizer.chat_format = template_format(tokenizer, QWEN3)
    return tokenizer
