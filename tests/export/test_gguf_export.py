"""GGUF files: they are read back as the same model, other readers agree, and what llama.cpp can't compute is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import MODELS, save_model
from foreign_llamas import VARIANTS, save_folder, write_gguf
from foreign_tokenizers import source
from tiny import chat_tokenizer, lively, tiny_tokenizer
from tiny_disk import tiny_disk
from tokenizer_samples import llama2c_tokenizer

from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.gguf import GGUFFile
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import GPTConfig
from mini_chat_gpt.export import announce, gguf_export
from mini_chat_gpt.export.command import main
from mini_chat_gpt.export.gguf_export import export_gguf
from mini_chat_gpt.export.gguf_model import ARCHITECTURES, FILE_TYPES
from mini_chat_gpt.export.gguf_tokenizer import gguf_tokenizer
from mini_chat_gpt.export.proof import ProofError
from mini_chat_gpt.export.split_rules import NAMES
from mini_chat_gpt.generation.text import generate
from mini_chat_gpt.tokenizer.bpe import GPT2_PATTERN, TiktokenBPE
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer
from mini_chat_gpt.tokenizer.gguf_import import tokenizer_from_gguf
from mini_chat_gpt.tokenizer.hf_bpe import HuggingFaceBPE
from mini_chat_gpt.tokenizer.split_patterns import PRE_TOKENIZERS, TWO_DIGITS_PATTERN


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of our own chat model, with a default system message and padding rows."""
    tokenizer = chat_tokenizer("Be a 'good' one.")
    model = lively(tokenizer, padding=3, context_length=512, n_embd=64, intermediate_size=96)
    return save_checkpoint(tmp_path_factory.mktemp("own") / "model", model, tokenizer)


@pytest.fixture
def without_llama_cpp(monkeypatch):
    monkeypatch.setattr(gguf_export, "compare_with_llama_cpp", lambda *_: [])


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".verified.json"}


pytestmark = pytest.mark.usefixtures("without_llama_cpp")


@pytest.mark.parametrize("kind", ["q5_1", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_type_passes_the_check(tmp_path, model, kind, capsys):
    assert main([str(model), str(tmp_path / "m.gguf"), "--type", kind.upper()]) == 0  # as llama.cpp writes types
    assert "equal ids of 5 conversations" in capsys.readouterr().out
    assert left(tmp_path) == {"m.gguf", "Modelfile", "README.md"}
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.metadata["general.file_type"] == FILE_TYPES[kind]
    types = set(file.types)
    # Rows of 96 and 64 can be divided into blocks of 32; the token table of the small types has 8 bits.
    assert types == {"F32", kind.upper()} | ({"Q8_0"} if kind[:2] in ("q4", "q5") else set())
    assert "## Check" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_an_architecture_passes_the_check(tmp_path, name):
    save_model(tmp_path / "model", name)
    lines = export_gguf(tmp_path / "model", tmp_path / "m.gguf", "f32").lines
    assert any(line.endswith("equal") for line in lines)
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["general.architecture"] == name.split()[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_every_type_of_every_architecture_passes_the_check(tmp_path, name, kind):
    save_model(tmp_path / "model", name)
    assert export_gguf(tmp_path / "model", tmp_path / "m.gguf", kind).proof is not None


@pytest.mark.parametrize("name", ["llama with llama3 scaling", "gpt2", "gemma3", "qwen2"])
def test_the_tensors_are_those_of_another_writer(tmp_path, name):
    theirs = save_model(tmp_path / "model", name)
    export_gguf(tmp_path / "model", tmp_path / "ours.gguf", "q8_0", check=False)
    write_gguf(tmp_path / "theirs.gguf", theirs, "Q8_0")
    ours, other = GGUFFile(tmp_path / "ours.gguf"), GGUFFile(tmp_path / "theirs.gguf")
    assert ours.infos.keys() == other.infos.keys()
    for tensor in ours.infos:
        if tensor == "rope_freqs.weight":
            torch.testing.assert_close(ours.read(tensor), other.read(tensor))
        elif tensor != "position_embd.weight":  # as in llama.cpp's converter, it is not rounded
            assert torch.equal(ours.read(tensor), other.read(tensor)), tensor
    same = [key for key in other.metadata if key.startswith(f"{name.split()[0]}.")]
    assert same
    assert {key: ours.metadata[key] for key in same} == {key: other.metadata[key] for key in same}


# What the reader of transformers takes for granted.
LIKE_TRANSFORMERS = {"qwen3": {"head_dim": 128}, "gemma3": {"head_dim": 256, "query_pre_attn_scalar": 256}}


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "qwen3", "gemma3"))]
)
def test_transformers_reads_the_weights(tmp_path, name):
    from transformers import AutoModelForCausalLM

    save_model(tmp_path / "model", name, **LIKE_TRANSFORMERS.get(name, {}))
    export_gguf(tmp_path / "model", tmp_path / "m.gguf", "f32", check=False)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ours, _ = load_checkpoint(tmp_path / "model", "cpu")
    ids = torch.randint(0, 400, (1, 60))
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-4 * ours(ids).abs().max()


def test_the_library_gguf_reads_the_file(tmp_path, model):
    import gguf

    export_gguf(model, tmp_path / "m.gguf", "q4_0", check=False)
    reader, file = gguf.GGUFReader(tmp_path / "m.gguf"), GGUFFile(tmp_path / "m.gguf")
    for tensor in reader.tensors:
        exact = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(file.infos[tensor.name].shape)
        assert np.array_equal(exact, file.read(tensor.name).float().numpy())
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == file.metadata
    _, tokenizer = load_checkpoint(model, "cpu")
    assert fields["tokenizer.ggml.tokens"][-3:] == [
        f"[PAD{n}]" for n in range(tokenizer.vocab_size, tokenizer.vocab_size + 3)
    ]


def test_rows_that_can_t_be_divided_stay_f16(tmp_path):
    tokenizer = chat_tokenizer()
    model = save_checkpoint(
        tmp_path / "model", lively(tokenizer, n_embd=48, context_length=512, intermediate_size=64), tokenizer
    )
    lines = export_gguf(model, tmp_path / "m.gguf", "q5_0").lines
    assert any("tensors stay f16, as their rows can't be divided into blocks of 32 weights" in line for line in lines)
    infos = GGUFFile(tmp_path / "m.gguf")
    assert infos.types["F16"] > infos.types["Q5_0"] > 0


def test_a_base_model_begins_texts_as_in_training(tmp_path):
    tokenizer = tiny_tokenizer()
    model = save_checkpoint(tmp_path / "model", lively(tokenizer), tokenizer, {"job": "pretrain"})
    export_gguf(model, tmp_path / "m.gguf", "f32")
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.bos_token_id"] == tokenizer.document_id
    assert "tokenizer.chat_template" not in metadata
    ours, theirs = (load_checkpoint(path, "cpu") for path in (model, tmp_path / "m.gguf"))
    assert generate(*theirs, ["Once"], 10, 0) == generate(*ours, ["Once"], 10, 0)


def test_a_model_of_llama2c_is_exported(tmp_path, real_data):
    source = real_data / "stories260K" / "stories260K.bin"
    lines = export_gguf(source, tmp_path / "m.gguf", "f32").lines
    assert any("the character U+2581 means a space" in line for line in lines)
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.token_type"][:5] == [2, 3, 3, 6, 6]
    ours, theirs = (load_checkpoint(path, "cpu") for path in (source, tmp_path / "m.gguf"))
    assert generate(*theirs, ["Once upon a time"], 40, 0) == generate(*ours, ["Once upon a time"], 40, 0)


def test_a_chat_model_of_llama2c_keeps_the_spaces_before_its_texts(tmp_path):
    tokenizer = llama2c_tokenizer()
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat("Be kind.")
    model = save_checkpoint(tmp_path / "model", lively(tokenizer, context_length=512), tokenizer)
    lines = export_gguf(model, tmp_path / "m.gguf", "f32").lines
    assert "  equal ids of 5 conversations in the chat format, and the same tokens end a reply" in lines
    assert GGUFFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.add_space_prefix"] is True


# Tokenizers


@pytest.mark.parametrize("kind", ["GPT-2", "SmolLM2", "Llama 3", "Qwen2"])
def test_known_split_rules_are_named(tmp_path, kind):
    encoder = HuggingFaceBPE(source(kind))
    tokenizer = ChatTokenizer(encoder)
    exported = gguf_tokenizer(tokenizer, tokenizer.vocab_size + 2)
    name = exported.metadata["tokenizer.ggml.pre"]
    assert name == {"GPT-2": "gpt-2", "SmolLM2": "smollm", "Llama 3": "llama-bpe", "Qwen2": "qwen2"}[kind]
    assert exported.exact
    about_bytes = "of the bytes of UTF-8 have no token, so characters that need them are dropped"
    assert [about_bytes in line for line in exported.lines] == [True] * (kind == "SmolLM2")
    types = dict(
        zip(exported.metadata["tokenizer.ggml.tokens"], exported.metadata["tokenizer.ggml.token_type"], strict=True)
    )
    assert (types["<|im_start|>"], types["<think>"]) == (3, 4)


def test_each_way_of_splitting_has_one_name():
    rules = [(rule.patterns, rule.ignore_merges) for rule in PRE_TOKENIZERS.values()]
    assert {(PRE_TOKENIZERS[name].patterns, PRE_TOKENIZERS[name].ignore_merges) for name in NAMES} == set(rules)
    assert len({PRE_TOKENIZERS[name] for name in NAMES}) == len(NAMES)


def two_digits(*numbers: str) -> ChatTokenizer:
    """A tokenizer with the split pattern of our first tokenizers, and these pairs of digits as tokens."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for number in numbers:
        for piece in (*(digit.encode() for digit in number), number.encode()):
            ranks.setdefault(piece, len(ranks))
    tokenizer = ChatTokenizer(TiktokenBPE(ranks, TWO_DIGITS_PATTERN))
    tokenizer.add_control_tokens()
    tokenizer.chat_format = ChatFormat()
    return tokenizer


def test_an_unknown_pattern_is_refused_or_exported_with_a_line(tmp_path):
    without, arabic, with_numbers = two_digits(), two_digits("٣٤"), two_digits("12", "50", "41")
    assert gguf_tokenizer(without, without.vocab_size).exact  # no token shows the difference
    folder = save_checkpoint(tmp_path / "arabic", lively(arabic, context_length=512), arabic)
    lines = export_gguf(folder, tmp_path / "m.gguf").lines
    assert "llama.cpp does not know the rules of the tokenizer exactly; with those of " in lines[1]
    assert any(re.search(r"equal ids of 9\d\d of 1,000 hostile strings and of a text", line) for line in lines)
    folder = save_checkpoint(tmp_path / "model", lively(with_numbers), with_numbers)
    with pytest.raises(
        UserError, match=r"can't be exported to GGUF: llama\.cpp does not know the rules of the tokenizer"
    ):
        export_gguf(folder, tmp_path / "n.gguf")
    assert left(tmp_path) == {"arabic", "m.gguf", "model", "Modelfile", "README.md"}


@pytest.mark.parametrize("kind", ["Mistral", "Metaspace"])
def test_spaces_that_llama_cpp_inserts_otherwise_are_refused(kind):
    tokenizer = ChatTokenizer(HuggingFaceBPE(source(kind)))
    with pytest.raises(UserError, match="inserts a space only before some texts"):
        gguf_tokenizer(tokenizer, tokenizer.vocab_size)


def test_tokens_that_no_merge_makes_are_noticed():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abab": 257}
    tokenizer = ChatTokenizer(TiktokenBPE(ranks, GPT2_PATTERN), {"<|endoftext|>": 259})
    exported = gguf_tokenizer(tokenizer, 260)
    assert exported.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert exported.exact
    other = tokenizer_from_gguf(exported.metadata)
    assert other.encode("abab ab the <|endoftext|>") == tokenizer.encode("abab ab the <|endoftext|>")
    # tiktoken finds a whole word, llama.cpp only what merges make.
    tokenizer = ChatTokenizer(TiktokenBPE(ranks | {b" the": 258}, GPT2_PATTERN), {"<|endoftext|>": 259})
    with pytest.raises(UserError, match=r"llama\.cpp does not know the rules"):
        gguf_tokenizer(tokenizer, 260)


def test_two_tokens_with_one_text_are_refused():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"<|": 256, b"<|x": 257}
    tokenizer = ChatTokenizer(TiktokenBPE(ranks, GPT2_PATTERN), {"<|x": 258})
    with pytest.raises(UserError, match=r"Two tokens are written as '<\|x'"):
        gguf_tokenizer(tokenizer, 260)


# What can't be exported


class LaterConfig(GPTConfig):
    input_factor: float = 1.0


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda one: one.name)
def test_a_field_that_is_added_later_is_refused(architecture):
    fields = dict(architecture.always) | {"vocab_size": 300}
    if architecture.name == "gemma3":
        fields |= {"embedding_factor": 384**0.5}
    assert architecture.why_not(LaterConfig(**fields)) is None
    assert "input_factor=3.0" in architecture.why_not(LaterConfig(**fields, input_factor=3.0))
    assert set(architecture.implemented) <= set(GPTConfig.model_fields)


@pytest.mark.parametrize(
    ("variant", "changes", "reason"),
    [
        ("GPT-Neo", {}, "llama.cpp has no architecture of its own for GPT-Neo"),
        ("OLMo 2", {}, "GGUF files of OLMo 2 are not written"),
        ("Phi-3 with a window", {}, "GGUF files of Phi-3 are not written"),
        ("Mistral with a window", {}, "windows="),
        ("Qwen2 with windows", {}, "windows="),
        ("Qwen3 with biases", {}, "bias=True"),
        ("Gemma 3", {"query_pre_attn_scalar": 16, "layer_types": ["full_attention"] * 5 + ["sliding_attention"]}, "every sixth"),
        ("Gemma 3", {}, "attention scale"),
        ("GPT-2, untied", {}, "activation='relu'"),
        ("GPT-2, narrow MLP", {}, "attention_scale=1.0"),
        ("Qwen3", {"rope_parameters": VARIANTS["llama3 scaling"]["rope_parameters"]}, "no llama3 scaling"),
    ],
)  # fmt: skip
def test_what_llama_cpp_does_not_compute_is_refused(tmp_path, variant, changes, reason):
    save_folder(tmp_path / "model", **VARIANTS[variant] | changes)
    with pytest.raises(UserError, match=reason) as caught:
        export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert "export a folder for transformers" in str(caught.value)
    assert left(tmp_path) == {"model"}


def test_values_that_16_bits_can_t_hold(tmp_path):
    tokenizer = chat_tokenizer()
    large = lively(tokenizer)
    large.embed_tokens.weight.data[3, 3] = 1e6
    model = save_checkpoint(tmp_path / "model", large, tokenizer)
    with pytest.raises(
        UserError, match=r"token_embd.weight has values above 65504, which F16 can't hold; use --type bf16 or f32"
    ):
        export_gguf(model, tmp_path / "m.gguf")
    assert left(tmp_path) == {"model"}


# Files that exist, full disks, differences


def test_nothing_is_overwritten(tmp_path, model):
    for number, kind in enumerate(("f32", "q8_0"), start=1):
        export_gguf(model, tmp_path / f"m{number}.gguf", kind, check=False)
    assert left(tmp_path) == {"m1.gguf", "m2.gguf", "Modelfile", "README.md", "m2.Modelfile", "m2.README.md"}
    assert "FROM ./m1.gguf" in (tmp_path / "Modelfile").read_text()
    assert "FROM ./m2.gguf" in (tmp_path / "m2.Modelfile").read_text()
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        export_gguf(model, tmp_path / "m1.gguf")


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, model, monkeypatch):
    monkeypatch.setattr(announce, "MARGIN", -(2**40))
    with tiny_disk(tmp_path / "disk", 100) as disk:
        with pytest.raises(UserError, match=r"Can't write .*: no space left on device\. Free some space"):
            export_gguf(model, disk / "folder" / "m.gguf", "f32")
        assert left(disk) == set()


def test_too_small_a_disk_is_named_before(tmp_path, model):
    with tiny_disk(tmp_path / "disk", 200) as disk:
        with pytest.raises(UserError, match=r"needs .*, but the disk of .* has .* left"):
            export_gguf(model, disk / "m.gguf")
        assert left(disk) == set()


@pytest.mark.parametrize("kind", ["q4_0", pytest.param("f16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["rows", "base", "template", "stop"])
def test_a_mistake_in_the_file_is_found_whatever_the_type(tmp_path, model, monkeypatch, kind, what):
    if what == "rows":  # Hugging Face's order of the rows instead of llama.cpp's
        monkeypatch.setattr("mini_chat_gpt.export.gguf_model.pairs_from_halves", lambda tensor, head_dim: tensor)
    else:
        original = gguf_export.model_metadata if what == "base" else gguf_export.gguf_tokenizer
        changes = {"llama.rope.freq_base": 10001.0} if what == "base" else {}

        def changed(*arguments):
            made = original(*arguments)
            if what == "base":
                return made | changes
            key = "tokenizer.chat_template"
            old, new = {"template": ("'good'", "bad"), "stop": ("'<|endoftext|>'", "'<|user|>'")}[what]
            text = made.metadata[key]
            made.metadata[key] = text.replace(old, new) if old in text else text.replace("\\'good\\'", new)
            assert made.metadata[key] != text
            return made

        monkeypatch.setattr(gguf_export, original.__name__, changed)
    with pytest.raises(ProofError):
        export_gguf(model, tmp_path / "m.gguf", kind)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("kind", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_no_rounding_exceeds_the_bound_of_its_type(kind):
    """Matrices of blocks with one large weight each, with two of opposite signs, and with none."""
    from gguf import GGMLQuantizationType, quants

    from mini_chat_gpt.export.proof import BOUNDS

    weights = np.random.default_rng(0).normal(size=(3, 100, 32)).astype(np.float32)
    weights[0, :, 0] *= 8
    weights[1, :, 1:3] = 30, -29
    stored = GGMLQuantizationType[kind.upper()]
    again = quants.dequantize(quants.quantize(weights, stored), stored)
    errors = [np.sqrt(np.square(b - a).mean() / np.square(a).mean()) for a, b in zip(weights, again, strict=True)]
    assert max(errors) < BOUNDS[kind].weights
    assert max(errors) > BOUNDS[kind].weights / 3
