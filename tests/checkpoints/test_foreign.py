"""Imported models against the originals: llama2.c's published sample, `transformers`' Llama and GPT-2."""

import os
import re
import struct
import zipfile
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from mini_chat_gpt.checkpoints.convert import main
from mini_chat_gpt.checkpoints.foreign import import_model
from mini_chat_gpt.checkpoints.load import load_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

SIZES = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 265, "seq_len": 24}


# llama2.c


def write_tokenizer(path, vocab_size: int = SIZES["vocab_size"], first: str = "a") -> None:
    """A llama2.c tokenizer: <unk>, BOS, EOS, the bytes, and single letters."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [chr(ord(first) + letter).encode() for letter in range(vocab_size - len(pieces))]
    body = b"".join(struct.pack("<fi", -float(rank), len(piece)) + piece for rank, piece in enumerate(pieces))
    path.write_bytes(struct.pack("<i", 7) + body)


def llama2c_tensors(sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    """Random weights under the names of llama2.c's C code, layers stacked."""
    torch.manual_seed(0)
    dim, inner, layers, vocab = sizes["dim"], sizes["hidden_dim"], sizes["n_layers"], sizes["vocab_size"]
    kv = dim // sizes["n_heads"] * sizes["n_kv_heads"]
    shapes = {
        "token_embedding": (vocab, dim),
        "rms_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv, dim),
        "wv": (layers, kv, dim),
        "wo": (layers, dim, dim),
        "rms_ffn": (layers, dim),
        "w1": (layers, inner, dim),
        "w2": (layers, dim, inner),
        "w3": (layers, inner, dim),
        "rms_final": (dim,),
        "freq_cis": (sizes["seq_len"], dim // sizes["n_heads"]),
        "wcls": (vocab, dim),
    }
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def write_llama2c(path, sizes=SIZES, *, tied=False, version=0, tokenizer=True) -> dict[str, torch.Tensor]:
    tensors = llama2c_tensors(sizes)
    order = list(tensors)
    header = struct.pack("<7i", *(sizes | {"vocab_size": sizes["vocab_size"] * (1 if tied else -1)}).values())
    if version:
        order = ["rms_att", "rms_ffn", "rms_final", "token_embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls"]
        header = struct.pack("<Ii7iB", 0x616B3432, version, *sizes.values(), tied).ljust(256, b"\0")
    body = b"".join(tensors[name].numpy().tobytes() for name in order if not (tied and name == "wcls"))
    path.write_bytes(header + body)
    if tokenizer:
        write_tokenizer(path.parent / "tokenizer.bin", sizes["vocab_size"])
    return tensors


def transformers_llama(tensors: dict[str, torch.Tensor], sizes: dict[str, int], tied: bool):
    from transformers import LlamaConfig, LlamaForCausalLM

    size = sizes["dim"] // sizes["n_heads"]
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["dim"],
        intermediate_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_kv_heads"],
        max_position_embeddings=sizes["seq_len"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    even_then_odd = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])

    def halves(weight):  # the order of a head's rows in Hugging Face's RoPE
        return weight.unflatten(0, (-1, size))[:, even_then_odd].flatten(0, 1)

    state = {"model.embed_tokens.weight": tensors["token_embedding"], "model.norm.weight": tensors["rms_final"]}
    state["lm_head.weight"] = tensors["token_embedding" if tied else "wcls"]
    for layer in range(sizes["n_layers"]):
        part = {name: tensor[layer] for name, tensor in tensors.items() if name[0] in "rw" and tensor.dim() > 1}
        state |= {
            f"model.layers.{layer}.{name}.weight": tensor
            for name, tensor in {
                "input_layernorm": tensors["rms_att"][layer],
                "self_attn.q_proj": halves(part["wq"]),
                "self_attn.k_proj": halves(part["wk"]),
                "self_attn.v_proj": part["wv"],
                "self_attn.o_proj": part["wo"],
                "post_attention_layernorm": tensors["rms_ffn"][layer],
                "mlp.gate_proj": part["w1"],
                "mlp.down_proj": part["w2"],
                "mlp.up_proj": part["w3"],
            }.items()
        }
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state, strict=True)
    return model


@pytest.fixture
def model_file(tmp_path):
    write_llama2c(tmp_path / "model.bin")
    return tmp_path / "model.bin"


def test_the_published_greedy_sample_of_stories260k_is_reproduced_to_the_character(real_data):
    folder = real_data / "stories260K"
    published = re.search(r"-t 0\.0\n(.*?)\n```", (folder / "stories260K.md").read_text(), re.DOTALL)[1]
    model, tokenizer = import_model(folder / "stories260K.bin")
    cache, ids, token = model.make_cache(1), [], tokenizer.bos_id
    with torch.no_grad():
        while len(ids) < 256:  # llama2.c's default number of steps
            token = int(model.next_logits(torch.tensor([[token]]), cache, [1]).argmax())
            ids.append(token)
    assert tokenizer.decode(ids) == published


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_llama2c_logits_equal_transformers_llama(tmp_path, tied, n_kv_heads):
    sizes = SIZES | {"n_kv_heads": n_kv_heads}
    theirs = transformers_llama(write_llama2c(tmp_path / "model.bin", sizes, tied=tied), sizes, tied)
    model, _ = import_model(tmp_path / "model.bin")
    ids = torch.randint(0, sizes["vocab_size"], (3, sizes["seq_len"]))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_llama2c_version_1_holds_the_same_model_as_the_original_format(tmp_path, tied):
    write_llama2c(tmp_path / "old.bin", tied=tied)
    write_llama2c(tmp_path / "new.bin", tied=tied, version=1)
    old, new = import_model(tmp_path / "old.bin")[0], import_model(tmp_path / "new.bin")[0]
    assert old.config == new.config
    assert old.state_dict().keys() == new.state_dict().keys()
    assert all(torch.equal(tensor, new.state_dict()[name]) for name, tensor in old.state_dict().items())


def test_a_width_of_640_is_not_mistaken_for_a_pickle(tmp_path):
    sizes = SIZES | {"dim": 640, "n_layers": 1}
    write_llama2c(tmp_path / "model.bin", sizes)
    assert import_model(tmp_path / "model.bin")[0].config.n_embd == 640


def test_the_tokenizer_with_the_models_vocabulary_size_is_chosen(model_file):
    write_tokenizer(model_file.parent / "tok260.bin", 260)
    (model_file.parent / "tok999.bin").write_bytes(b"no tokenizer at all")
    assert import_model(model_file)[1].vocab_size == 265


def test_importing_uses_no_random_numbers(model_file):
    state = torch.get_rng_state()
    import_model(model_file)
    assert torch.equal(torch.get_rng_state(), state)


def check_error(source, message: str, tokenizer=None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_model(source, tokenizer)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_llama2c_file_is_rejected_with_both_sizes(model_file):
    whole = model_file.stat().st_size
    os.truncate(model_file, whole - 1000)
    check_error(model_file, f"truncated.* {whole:,} bytes, it has {whole - 1000:,}")


def test_a_llama2c_file_with_extra_bytes_is_rejected(model_file):
    with open(model_file, "ab") as file:
        file.write(b"1234")
    check_error(model_file, "but its header requires")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0 bytes"),
        (b"Once upon a time", "only 16 bytes"),
        (
            b"Once upon a time, there was a little girl named Lily.",
            "is a text, not a model; give a Hugging Face folder",
        ),
        (bytes(100), "dim = 0"),
        (struct.pack("<7i", *(SIZES | {"n_layers": -1}).values()), "n_layers = -1"),
        (struct.pack("<7i", *(SIZES | {"n_heads": 6}).values()), r"n_embd \(32\) must be a multiple of n_head \(6\)"),
        (
            struct.pack("<7i", *(SIZES | {"n_kv_heads": 3}).values()),
            r"n_head \(4\) must be a multiple of n_kv_head \(3\)",
        ),
        (struct.pack("<7i", *(SIZES | {"seq_len": 1}).values()), "context_length"),
        (struct.pack("<Ii", 0x616B3432, 2).ljust(300, b"\0"), "version 2, which is quantized.*--version 0"),
        (struct.pack("<Ii", 0x616B3432, 9).ljust(300, b"\0"), "version 9, which is unknown"),
        (struct.pack("<Ii", 0x616B3432, 1).ljust(100, b"\0"), "truncated within its header"),
    ],
    ids=["empty", "short", "text", "zeros", "layers", "heads", "kv heads", "context", "version 2", "version 9", "cut"],
)
def test_a_file_that_is_not_a_model_is_rejected(tmp_path, content, message):
    (tmp_path / "model.bin").write_bytes(content)
    check_error(tmp_path / "model.bin", message)


def test_a_missing_file_is_rejected(tmp_path):
    check_error(tmp_path / "none.bin", "There is no file")


def test_a_folder_is_rejected(tmp_path):
    check_error(tmp_path, "is a folder without a model")


def test_a_missing_llama2c_tokenizer_is_reported(tmp_path):
    write_llama2c(tmp_path / "model.bin", tokenizer=False)
    check_error(
        tmp_path / "model.bin",
        r"tokenizer with 265 entries, but there is no tok\*\.bin in its folder; name it with.*--tokenizer",
    )


def test_tokenizers_of_other_sizes_in_the_folder_are_listed(model_file):
    write_tokenizer(model_file.parent / "tokenizer.bin", 260)
    check_error(model_file, r"none in its folder has that size \(tokenizer.bin has 260\)")


def test_two_different_tokenizers_of_the_right_size_are_ambiguous(model_file):
    write_tokenizer(model_file.parent / "tok265.bin", first="n")
    check_error(model_file, "tok265.bin and tokenizer.bin in its folder have that size and differ")


def test_a_given_llama2c_tokenizer_of_another_size_is_rejected(model_file):
    write_tokenizer(model_file.parent / "other.bin", 260)
    check_error(model_file, "other.bin has 260 entries, but", tokenizer=model_file.parent / "other.bin")


# nanoGPT

ARGUMENTS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "bias": True, "vocab_size": 320, "dropout": 0.1}


def nanogpt_state(arguments: dict) -> dict[str, torch.Tensor]:
    """Random weights with the names of nanoGPT's GPT.state_dict()."""
    torch.manual_seed(0)
    width, state = arguments["n_embd"], {}

    def add(name, *shape, bias=True):
        state[f"{name}.weight"] = torch.randn(shape) * 0.3
        if bias and arguments["bias"]:
            state[f"{name}.bias"] = torch.randn(shape[0]) * 0.3

    add("transformer.wte", arguments["vocab_size"], width, bias=False)
    add("transformer.wpe", arguments["block_size"], width, bias=False)
    for layer in range(arguments["n_layer"]):
        block = f"transformer.h.{layer}"
        add(f"{block}.ln_1", width)
        add(f"{block}.attn.c_attn", 3 * width, width)
        add(f"{block}.attn.c_proj", width, width)
        add(f"{block}.ln_2", width)
        add(f"{block}.mlp.c_fc", 4 * width, width)
        add(f"{block}.mlp.c_proj", width, 4 * width)
    add("transformer.ln_f", width)
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def write_nanogpt(path, state, arguments=ARGUMENTS, **changes):
    """Write what nanoGPT's train.py saves."""
    checkpoint = {"model": state, "optimizer": {"state": {}, "param_groups": []}, "model_args": arguments}
    checkpoint |= {"iter_num": 5, "best_val_loss": torch.tensor(1.5), "config": {"dataset": "openwebtext"}}
    torch.save(checkpoint | changes, path)
    return path


def transformers_gpt2(state: dict[str, torch.Tensor], arguments: dict):
    """GPT-2 with nanoGPT's weights: its Conv1D holds them transposed, and a bias that nanoGPT lacks is zero."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=arguments["vocab_size"],
        n_positions=arguments["block_size"],
        n_embd=arguments["n_embd"],
        n_layer=arguments["n_layer"],
        n_head=arguments["n_head"],
        activation_function="gelu",
    )
    model = GPT2LMHeadModel(config).eval()
    ours = {name: tensor.T if ".c_" in name and tensor.dim() == 2 else tensor for name, tensor in state.items()}
    biases = {name: torch.zeros_like(p) for name, p in model.state_dict().items() if name.endswith("bias")}
    model.load_state_dict(biases | ours, strict=True)
    return model


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A tokenizer of our own, of at most 300 entries."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ChatTokenizer.train(["Once upon a time there was a little girl. " * 20], 300).save(folder)
    return folder


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_logits_equal_transformers_gpt2(tmp_path, tokenizer_folder, bias):
    arguments = ARGUMENTS | {"bias": bias}
    state = nanogpt_state(arguments)
    model, _ = import_model(write_nanogpt(tmp_path / "ckpt.pt", state, arguments), tokenizer_folder)
    ids = torch.randint(0, arguments["vocab_size"], (3, arguments["block_size"]))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), transformers_gpt2(state, arguments)(ids).logits, atol=1e-4, rtol=1e-4)


def same_as_plain(path, folder) -> bool:
    plain = write_nanogpt(path.with_name("plain.pt"), nanogpt_state(ARGUMENTS))
    ours, reference = import_model(path, folder)[0].state_dict(), import_model(plain, folder)[0].state_dict()
    return ours.keys() == reference.keys() and all(torch.equal(ours[name], reference[name]) for name in ours)


def test_the_prefix_of_torch_compile_is_removed(tmp_path, tokenizer_folder):
    state = {f"_orig_mod.{name}": tensor for name, tensor in nanogpt_state(ARGUMENTS).items()}
    assert same_as_plain(write_nanogpt(tmp_path / "ckpt.pt", state), tokenizer_folder)


def test_causal_masks_saved_by_some_versions_are_ignored(tmp_path, tokenizer_folder):
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 24, 24) for layer in range(2)}
    assert same_as_plain(write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(ARGUMENTS) | masks), tokenizer_folder)


def test_a_checkpoint_in_torchs_old_file_format_is_read(tmp_path, tokenizer_folder):
    checkpoint = {"model": nanogpt_state(ARGUMENTS), "model_args": ARGUMENTS}
    torch.save(checkpoint, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=False)
    assert same_as_plain(tmp_path / "ckpt.pt", tokenizer_folder)


def test_half_precision_weights_become_float32(tmp_path, tokenizer_folder):
    state = {name: tensor.bfloat16() for name, tensor in nanogpt_state(ARGUMENTS).items()}
    model, _ = import_model(write_nanogpt(tmp_path / "ckpt.pt", state), tokenizer_folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_gpt2s_tokenizer_fits_the_padded_table(tmp_path, real_data):
    arguments = ARGUMENTS | {"vocab_size": 50304, "n_layer": 1, "n_embd": 8}
    path = write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(arguments), arguments)
    model, tokenizer = import_model(path, real_data / "gpt2-bpe" / "gpt2.tiktoken")
    assert (model.config.vocab_size, tokenizer.vocab_size, tokenizer.end_id) == (50304, 50257, 50256)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "plain pickle"])
def test_code_in_a_pickle_is_rejected_and_not_run(tmp_path, new_format):
    checkpoint = {"model": Malicious(tmp_path / "was-run"), "model_args": ARGUMENTS}
    torch.save(checkpoint, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=new_format)
    check_error(tmp_path / "ckpt.pt", r"pickled Python code \(posix.mkdir\), which is never run")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "plain pickle"])
def test_a_truncated_checkpoint_is_rejected(tmp_path, new_format):
    checkpoint = {"model": nanogpt_state(ARGUMENTS), "model_args": ARGUMENTS}
    torch.save(checkpoint, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=new_format)
    os.truncate(tmp_path / "ckpt.pt", (tmp_path / "ckpt.pt").stat().st_size // 2)
    check_error(tmp_path / "ckpt.pt", "truncated")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_changed_bytes_within_a_tensor_are_noticed_by_their_checksum(tmp_path, tokenizer_folder, share):
    path = write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(ARGUMENTS))
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 64
    path.write_bytes(data)
    check_error(path, "truncated, damaged or not written by torch.save", tokenizer_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 10**9}, "model_args says 1000000000 layers, but `model` has 2"),
        ({"n_head": 5}, "must be a multiple of n_head"),
        ({"n_embd": 64}, r"wte.weight is \[320, 32\], but model_args requires \[320, 64\]"),
        ({"block_size": 10**6}, "wpe.weight"),
        ({"block_size": None}, r"model_args\['block_size'\] is None"),
        ({"use_rmsnorm": True}, "'use_rmsnorm'.*a variant"),
        ({"n_kv_heads": 2, "dim": 32}, "training checkpoint of llama2.c"),
    ],
)
def test_model_args_that_do_not_fit_are_rejected_by_name(tmp_path, tokenizer_folder, change, message):
    path = write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(ARGUMENTS), ARGUMENTS | change)
    check_error(path, message, tokenizer_folder)


def test_a_missing_tensor_is_rejected_by_name(tmp_path, tokenizer_folder):
    state = nanogpt_state(ARGUMENTS)
    del state["transformer.h.1.mlp.c_fc.bias"]
    check_error(write_nanogpt(tmp_path / "ckpt.pt", state), "h.1.mlp.c_fc.bias is missing", tokenizer_folder)


def test_an_unexpected_tensor_is_rejected_by_name(tmp_path, tokenizer_folder):
    state = nanogpt_state(ARGUMENTS) | {"transformer.h.0.attn.gate.weight": torch.ones(1)}
    check_error(
        write_nanogpt(tmp_path / "ckpt.pt", state), "nanoGPT has no transformer.h.0.attn.gate", tokenizer_folder
    )


@pytest.mark.parametrize("checkpoint", [{"weights": torch.ones(2)}, torch.ones(2), {"model": 1, "model_args": 2}])
def test_another_torch_file_is_rejected(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    check_error(tmp_path / "ckpt.pt", "has no `model` and `model_args`")


def test_a_tokenizer_larger_than_nanogpts_table_is_rejected(tmp_path, tokenizer_folder):
    arguments = ARGUMENTS | {"vocab_size": 65}
    path = write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(arguments), arguments)
    check_error(path, "table of 65 tokens, but the tokenizer .* has .*--tokenizer", tokenizer_folder)


def test_a_tokenizer_much_smaller_than_nanogpts_table_is_rejected(tmp_path, tokenizer_folder):
    arguments = ARGUMENTS | {"vocab_size": 4096}
    path = write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(arguments), arguments)
    check_error(path, "table of 4096 tokens", tokenizer_folder)


def test_if_gpt2s_tokenizer_is_not_available_the_error_names_the_option(tmp_path, monkeypatch):
    def no_network(name):
        raise UserError(f"tiktoken can't download the ranks of {name!r}.")

    monkeypatch.setattr(ChatTokenizer, "load", no_network)
    path = write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(ARGUMENTS))
    check_error(path, "needs GPT-2's tokenizer: tiktoken can't download the ranks of 'gpt2'.*--tokenizer FILE")


# The command


def test_the_command_writes_a_checkpoint_and_says_what_it_imported(model_file, tmp_path, capsys):
    assert main([str(model_file), str(tmp_path / "imported")]) == 0
    model, tokenizer = load_checkpoint(tmp_path / "imported", device="cpu")
    original, _ = import_model(model_file)
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.vocab_size == 265
    printed = capsys.readouterr().out
    for part in (f"{original.n_parameters():,} parameters", "2 layers", "width 32", "vocabulary 265", "context 24"):
        assert part in printed


def test_an_imported_nanogpt_model_is_saved_and_loaded(tmp_path, tokenizer_folder):
    path = write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(ARGUMENTS))
    main([str(path), str(tmp_path / "imported"), "--tokenizer", str(tokenizer_folder)])
    model, _ = load_checkpoint(tmp_path / "imported", device="cpu")
    original, _ = import_model(path, tokenizer_folder)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids), original(ids))


def test_transformers_loads_the_imported_folder_with_the_same_logits(model_file, tmp_path):
    from transformers import AutoModelForCausalLM

    main([str(model_file), str(tmp_path / "imported")])
    assert "lm_head.weight" in load_file(tmp_path / "imported" / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "imported").eval()
    model, _ = import_model(model_file)
    ids = torch.randint(0, 265, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("tensor", "argument"),
    [
        (torch.zeros(1).expand(2**30, 2**20), {"vocab_size": 2**30, "n_embd": 2**20}),
        (torch.zeros(320, 32, dtype=torch.int64), {}),
        (torch.zeros(320, 32).to_sparse(), {}),
        (torch.zeros(320, 32, dtype=torch.complex64), {}),
        ("weights", {}),
    ],
    ids=["a view with a stride of 0", "integers", "sparse", "complex", "text"],
)
def test_a_tensor_that_is_not_a_plain_one_is_rejected_before_it_takes_memory(tmp_path, tensor, argument):
    state = nanogpt_state(ARGUMENTS) | {"transformer.wte.weight": tensor}
    path = write_nanogpt(tmp_path / "ckpt.pt", state, ARGUMENTS | argument)
    check_error(path, "'transformer.wte.weight' is not a tensor of numbers as in nanoGPT")


@pytest.mark.parametrize("value", [10**300, -3, True, 2.0, "2"], ids=["digits", "negative", "bool", "float", "text"])
def test_an_impossible_size_in_model_args_is_one_short_sentence(tmp_path, value):
    path = write_nanogpt(tmp_path / "ckpt.pt", nanogpt_state(ARGUMENTS), ARGUMENTS | {"n_layer": value})
    check_error(path, r"model_args\['n_layer'\] is .*, not a size")


def test_a_compressed_checkpoint_is_rejected_before_it_is_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "ckpt.pt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a/data", "w") as file,
    ):
        for _ in range(50):
            file.write(bytes(10**6))
    with patch.object(zipfile.ZipFile, "testzip", side_effect=AssertionError("it was read")):
        check_error(tmp_path / "ckpt.pt", "truncated, damaged or not written by torch.save")
