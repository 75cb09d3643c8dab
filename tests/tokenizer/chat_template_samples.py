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
QWEN25 = """{%- if tools %}
    {{- raise_exception('tools are not tested here') }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first)
        or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- for tool_call in message.tool_calls %}{{- tool_call | tojson }}{%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
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
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""
PHI3 = """{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'system' %}{{ raise_exception('System messages are not supported') }}{% endif %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}
{{ ' ' + message['content'] + eos_token }}
{%- endif %}
{% endfor %}
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
    "llama3": LLAMA3,
    "llama3.2": LLAMA32,
    "zephyr": ZEPHYR,
    "gemma3": GEMMA3,
    "phi3": PHI3,
    "mistral": MISTRAL,
}

CONTROL = (
    *("<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<|end|>", "<think>", "</think>"),
)
PLAIN_ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
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

    plain_roles: <|user|> and so on are ordinary text. strips: (name, lstrip, rstrip) of tokens that swallow white space.
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
        token["special"] = "think" not in token["content"]
    full = Tokenizer.from_str(json.dumps(parts))
    control = {token["content"]: token["id"] for token in parts["added_tokens"]}
    content = Tokenizer.from_str(json.dumps(parts | {"added_tokens": []}))
    return SmallTokenizer(content, full, control)
