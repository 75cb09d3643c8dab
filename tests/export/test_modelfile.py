"""The Modelfile: its template gives the text of our render, in Go and in a small evaluator; stops, and what can't be expressed."""

from types import SimpleNamespace

import pytest
from go_templates import rendered, rendered_by_go
from template_formats import BEGIN, FORMATS, made
from tiny import chat_tokenizer, tiny_tokenizer
from tokenizer_samples import llama2c_tokenizer

from mini_chat_gpt.chat_format import ChatFormat, Message
from mini_chat_gpt.export.modelfile import go_template, modelfile
from mini_chat_gpt.export.turns import NotExpressible, conversation_text, conversations, turns_of
from mini_chat_gpt.generation.text import prompt_ids
from mini_chat_gpt.tokenizer.chat_templates import TemplateFormat

NOT_IN_GO = ("mistral3",)
"""It prints the system message in the last turn."""
EXPRESSIBLE = [name for name in FORMATS if name not in NOT_IN_GO]


def tokenizer_with(name: str, adds_bos: bool = False) -> SimpleNamespace:
    """What `turns_of` needs of a tokenizer with one of the sample formats, which inserts BOS by itself or not."""
    bos = BEGIN.get(name, "<s>") if adds_bos else None
    return SimpleNamespace(chat_format=made(name)[0], bos_token=bos)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_the_template_gives_the_text_of_our_render(name, adds_bos):
    tokenizer = tokenizer_with(name, adds_bos)
    template = go_template(turns_of(tokenizer))
    for messages in conversations(tokenizer.chat_format):
        assert rendered(template, messages) == conversation_text(tokenizer, messages)
    assert not (adds_bos and template.startswith(tokenizer.bos_token))


@pytest.mark.slow
def test_go_renders_every_template_as_we_do(tmp_path):
    tokenizers = [tokenizer_with(name, adds) for name in EXPRESSIBLE for adds in (False, True)]
    tokenizers += [chat_tokenizer(), own_llama2c()]
    cases, expected = [], []
    for tokenizer in tokenizers:
        template = go_template(turns_of(tokenizer))
        for messages in conversations(tokenizer.chat_format):
            cases.append((template, messages))
            expected.append(conversation_text(tokenizer, messages))
    assert rendered_by_go(tmp_path, cases) == expected
    assert [rendered(*case) for case in cases] == expected


def own_llama2c():
    """The tokenizer of a llama2.c model that was fine-tuned to our format."""
    tokenizer = llama2c_tokenizer()
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat()
    return tokenizer


@pytest.mark.parametrize("tokenizer", [chat_tokenizer(), own_llama2c()], ids=["tiktoken", "llama2c"])
def test_the_text_of_our_own_format_has_the_ids_of_our_chat(tokenizer):
    template = go_template(turns_of(tokenizer))
    for messages in conversations(tokenizer.chat_format):
        ids = prompt_ids(tokenizer, messages)
        assert rendered(template, messages) == tokenizer.decode(ids[ids[0] == tokenizer.bos_id :], control=True)


@pytest.mark.parametrize("name", NOT_IN_GO)
def test_a_template_that_go_can_t_express_gets_a_sentence(name):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_format = TemplateFormat.from_source(FORMATS[name], made(name)[1].control, "<s>", "</s>")
    with pytest.raises(NotExpressible):
        turns_of(tokenizer)
    tokenizer.control |= {
        token: 500 + i for token, i in made(name)[1].control.items() if token not in tokenizer.control
    }
    tokenizer.chat_format = TemplateFormat.from_source(FORMATS[name], tokenizer.control, "<s>", "</s>")
    text, notes = modelfile(tokenizer, "m.gguf")
    assert len(notes) == 1
    assert notes[0].startswith("The chat template can't be written for Ollama, because ")
    assert f"# {notes[0]}\n" in text
    assert "TEMPLATE" not in text


def test_the_modelfile_of_our_own_format():
    tokenizer = chat_tokenizer("Be kind.\nAlways.")
    text, notes = modelfile(tokenizer, "small.gguf", "The license.")
    assert notes == []
    assert text.splitlines() == [
        "FROM ./small.gguf",
        'TEMPLATE """{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}<|system|>{{ .Content }}{{ end }}'
        '{{ if eq .Role "user" }}<|user|>{{ .Content }}{{ end }}'
        '{{ if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|endoftext|>{{ end }}{{ end }}<|assistant|>{{ .Response }}"""',
        'SYSTEM """Be kind.',
        'Always."""',
        *(f'PARAMETER stop "<|{name}|>"' for name in ("endoftext", "system", "user", "assistant")),
        "PARAMETER temperature 0.7",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER top_k 0",
        "PARAMETER top_p 1.0",
        'LICENSE """The license."""',
    ]


def test_a_base_model_continues_the_prompt():
    text, _ = modelfile(tiny_tokenizer(), "base.gguf")
    assert 'TEMPLATE """{{ .Prompt }}"""' in text
    assert 'PARAMETER stop "<|endoftext|>"' in text
    assert "<|user|>" not in text


def test_braces_in_a_template_are_text():
    template = "{% for m in messages %}{{ '{{' + m.role + '}}{' + m.content + '<|im_end|>' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ '{{assistant}}{' }}{% endif %}"
    )
    chat_format = TemplateFormat.from_source(template, made("chatml")[1].control, None, None)
    tokenizer = SimpleNamespace(chat_format=chat_format, bos_token=None)
    messages = [Message("user", "Hi")]
    assert rendered(go_template(turns_of(tokenizer)), messages) == "{{user}}{Hi<|im_end|>{{assistant}}{"


def test_quotation_marks_that_would_end_the_text_are_said():
    _, notes = modelfile(chat_tokenizer('Say """ often.'), "m.gguf")
    assert notes == ["The default system message contains three quotation marks in a row; give it to Ollama yourself."]
