"""Real tokenizers that Python packages ship: Qwen's (package dashscope) and Mistral's (package mistral-common).

The references are other implementations than the one that reads tokenizer.json: tiktoken, the sentencepiece library, and the chat encoder
of mistral-common. To run them: `pip install --no-deps dashscope mistral-common && pip install sentencepiece pycountry`.
"""

import base64
import json
import shutil
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pytest
from chat_template_samples import MISTRAL, MISTRAL3
from foreign_tokenizers import TEXTS, hostile

from mini_chat_gpt.chat_format import Message, render
from mini_chat_gpt.checkpoints.import_check import template_format
from mini_chat_gpt.tokenizer.hf_import import tokenizer_from_folder
from mini_chat_gpt.tokenizer.split_patterns import QWEN2_PATTERN

SAMPLES = [*TEXTS, *hostile(2000), " " * 300 + "a" + "\n" * 50, "x" * 500, "def f(x):\n\treturn x**2\n" * 20]
MISTRAL_FILES = {"v1": ("tokenizer.model.v1", MISTRAL), "v3": ("mistral_instruct_tokenizer_240323.model.v3", MISTRAL3)}
CHATS = [
    [("user", "What is 2+2?")],
    [("user", "Hi there"), ("assistant", "Hello! How can I help?"), ("user", "Tell me a joke\n\nabout cats")],
    [("system", "Be brief."), ("user", "Who are you?")],
    [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")],
    [("user", "[INST] x [/INST] </s>"), ("assistant", "y"), ("user", "z")],
]


def package_folder(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name} is not installed")
    return Path(spec.origin).parent


def test_qwens_ids_are_tiktokens(tmp_path):
    ranks_file = package_folder("dashscope") / "resources" / "qwen.tiktoken"
    tiktoken = pytest.importorskip("tiktoken")
    converter = pytest.importorskip("transformers.convert_slow_tokenizer")
    normalizers = pytest.importorskip("tokenizers").normalizers
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    whole = converter.TikTokenConverter(str(ranks_file), QWEN2_PATTERN, extra_special_tokens=special).converted()
    whole.normalizer = normalizers.NFC()
    whole.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in ranks_file.read_bytes().splitlines()}
    reference = tiktoken.Encoding("qwen", pat_str=QWEN2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    ours = tokenizer_from_folder(tmp_path)
    for text in SAMPLES:
        assert ours.encode(text) == reference.encode_ordinary(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize("version", MISTRAL_FILES)
def test_mistrals_ids_are_sentencepieces_and_those_of_its_own_chat_encoder(tmp_path, version):
    package = package_folder("mistral_common")
    name, template = MISTRAL_FILES[version]
    sentencepiece = pytest.importorskip("sentencepiece")
    transformers = pytest.importorskip("transformers")
    shutil.copy(package / "data" / name, tmp_path / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    ours = tokenizer_from_folder(tmp_path)
    ours.chat_format = template_format(ours, template)
    own = pytest.importorskip("mistral_common.tokens.tokenizers.mistral").MistralTokenizer.from_file(
        str(package / "data" / name)
    )
    request = pytest.importorskip("mistral_common.protocol.instruct.request").ChatCompletionRequest
    for chat in CHATS:
        expected = own.encode_chat_completion(
            request(messages=[{"role": role, "content": text} for role, text in chat])
        )
        assert render([Message(role, text) for role, text in chat], ours)[0] == expected.tokens

    # The files of the first releases put a space before every text, as the sentencepiece library does.
    parts = json.loads((tmp_path / "tokenizer.json").read_text())
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    parts |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    first = tokenizer_from_folder(tmp_path)
    for text in SAMPLES:
        assert first.encode(text) == reference.encode(text)
