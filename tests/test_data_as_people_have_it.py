"""Chats in the kinds of files and forms of records that people have: `inspect`, three steps of `sft`, and a reply for each.

The forms are those of public data sets; the texts are our own.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tiny import chat_tokenizer, tiny_model

from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.cli import dispatch

PAIRS = [
    ("What is a red ball?", "A ball that is red."),
    ("Who was happy?", "Sara was happy.\nShe had a ball."),
    ('Say "hi", please', "“Hi!” said Tom."),
    ("Where is the cat; and why?", "Here, because it ran."),
    ("Is Tom a cat?", "Yes, he is a little cat."),
    ("What did Tom do?", "He ran, and then he fell."),
]


def turns(
    question: str,
    answer: str,
    roles: tuple[str, str] = ("user", "assistant"),
    keys: tuple[str, str] = ("role", "content"),
) -> Any:
    return [dict(zip(keys, pair, strict=True)) for pair in zip(roles, (question, answer), strict=True)]


def openai(question: str, answer: str) -> dict[str, Any]:
    """OpenAI's fine-tuning files: a system message, a reply that is not trained on, names."""
    early = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "Ho", "weight": 0}]
    return {"messages": [{"role": "developer", "content": "Be kind."}, *early, *turns(question, answer)]}


def sharegpt(question: str, answer: str) -> dict[str, Any]:
    return {"id": "identity_0", "conversations": turns(question, answer, ("human", "gpt"), ("from", "value"))}


def dolly(question: str, answer: str) -> dict[str, Any]:
    context = "" if question.startswith("Who") else "Tom is a little cat."
    return {"instruction": question, "context": context, "response": answer, "category": "closed_qa"}


def squad(question: str, answer: str) -> dict[str, Any]:
    answers = {"text": [answer, answer.lower()], "answer_start": [3, 3]}
    return {"id": "5", "title": "Tom", "context": "Tom is a little cat.", "question": question, "answers": answers}


def hh(question: str, answer: str) -> dict[str, Any]:
    """Preference data as texts, in which both sides begin alike."""
    begin = f"\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": begin + answer, "rejected": begin + "No."}


def ultrafeedback(question: str, answer: str) -> dict[str, Any]:
    sides = {"chosen": turns(question, answer), "rejected": turns(question, "No.")}
    return {"prompt": question, "prompt_id": "a1", **sides, "score_chosen": 8.5, "score_rejected": 2.0}


def kto(question: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": turns(question, "")[:1],
        "completion": turns("", answer)[1:],
        "label": not question.startswith("Who"),
    }


def parts(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in zip(("user", "assistant"), (question, answer), strict=True)
        ]
    }


def reasoning(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "reasoning_content": None},
        ]
    }


def tools(question: str, answer: str) -> dict[str, Any]:
    """LLaMA-Factory's form; our format has no tools: the chat with a call is left out and named."""
    chat = turns(question, answer, ("human", "gpt"), ("from", "value"))
    if not question.startswith("Is"):
        return {"conversations": chat, "system": "", "tools": "[]"}
    call = {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "Tom"}}'}
    chat[1:1] = [call, {"from": "observation", "value": "a cat"}]
    return {"conversations": chat, "system": "", "tools": '[{"name": "look", "description": "", "parameters": {}}]'}


def lines(record: Callable[[str, str], Any]) -> str:
    return "".join(json.dumps(record(*pair), ensure_ascii=False) + "\n" for pair in PAIRS)


def array(record: Callable[[str, str], Any]) -> str:
    return json.dumps([record(*pair) for pair in PAIRS], ensure_ascii=False, indent=2)


def alpaca(question: str, answer: str) -> dict[str, Any]:
    return {"instruction": question, "input": "", "output": answer}


def completion(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def gsm8k(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer}


def table(delimiter: str, header: str) -> str:
    """As spreadsheets write it: every text in quotes, with line breaks in them."""
    rows = [delimiter.join('"' + text.replace('"', '""') + '"' for text in pair) for pair in PAIRS]
    return "\r\n".join([header, *rows]) + "\r\n"


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._chats.json", b"\0\5")
        archive.writestr("export/chats.json", array(sharegpt))


def write_parquet(path: Path) -> None:
    """Messages as lists of structures, in several row groups."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    records = pyarrow.Table.from_pylist([{"messages": turns(*pair), "source": "web", "n": 3} for pair in PAIRS])
    parquet.write_table(records, path, row_group_size=2)


def write_saved_dataset(folder: Path) -> None:
    """What `DatasetDict.save_to_disk` writes: a folder for each split, with Arrow streams and their list."""
    pyarrow = pytest.importorskip("pyarrow")
    (folder / "train").mkdir(parents=True)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    records = pyarrow.Table.from_pylist([alpaca(*pair) for pair in PAIRS])
    name = "data-00000-of-00001.arrow"
    with (
        pyarrow.OSFile(str(folder / "train" / name), "wb") as file,
        pyarrow.ipc.new_stream(file, records.schema) as stream,
    ):
        stream.write_table(records)
    (folder / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": "train"}))
    (folder / "train" / "dataset_info.json").write_text("{}")


def write_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines(completion))
    (folder / "b.csv").write_text(table(",", "prompt,completion"))
    (folder / "README.md").write_text("# Chats\n")


class Data(NamedTuple):
    """A file or a folder, and what is typed for it."""

    name: str
    write: str | bytes | Callable[[Path], None]
    typed: str = ""  # instead of the name; {} is the folder
    settings: tuple[str, ...] = ()
    shown: str = ""  # a part of what `inspect` prints, in addition


LOG = [{"said": {"user_text": question, "bot_text": answer}, "when": 3} for question, answer in PAIRS]
DATA = {
    "OpenAI messages": Data("chats.jsonl", lines(openai)),
    "ShareGPT": Data("chats.json", array(sharegpt)),
    "Alpaca": Data("alpaca_data.json", array(alpaca)),
    "Dolly, gzip": Data("dolly.jsonl.gz", gzip.compress(lines(dolly).encode()), shown='"category"'),
    "prompt and completion, bzip2": Data("chats.jsonl.bz2", bz2.compress(lines(completion).encode())),
    "GSM8K, xz": Data("gsm8k.jsonl.xz", lzma.compress(lines(gsm8k).encode())),
    "SQuAD": Data("squad.json", array(squad), shown='"title"'),
    "hh-rlhf": Data("hh.jsonl", lines(hh)),
    "UltraFeedback": Data("prefs.jsonl", lines(ultrafeedback), shown='"score_chosen"'),
    "KTO": Data("kto.jsonl", lines(kto), shown="label"),
    "parts": Data("parts.jsonl", lines(parts)),
    "reasoning": Data("thoughts.jsonl", lines(reasoning)),
    "tools": Data("tools.json", array(tools), shown="tools"),
    "CSV of a spreadsheet": Data("chats.csv", b"\xef\xbb\xbf" + table(";", "Question;Answer").encode()),
    "TSV": Data("chats.tsv", table("\t", "instruction\toutput")),
    "UTF-16": Data("chats.csv", table(",", "prompt,response").encode("utf-16")),
    "YAML": Data("chats.yaml", yaml.safe_dump([gsm8k(*pair) for pair in PAIRS], allow_unicode=True)),
    "zip": Data("export.zip", write_zip),
    "one list of messages": Data("chat.json", json.dumps([message for pair in PAIRS for message in turns(*pair, ("human", "ai"))])),
    "keys of one's own": Data("log.json", json.dumps(LOG), settings=("chats.keys={prompt: said.user_text, response: said.bot_text}",)),
    "Parquet": Data("train-00000-of-00001.parquet", write_parquet, shown='"source"'),
    "save_to_disk": Data("saved", write_saved_dataset),
    "folder": Data("chats", write_folder),
    "pattern": Data("chats", write_folder, "{}/*.jsonl"),
    "list": Data("chats", write_folder, "{0}/a.jsonl,{0}/b.csv"),
    "JSON Lines named .txt": Data("chats.jsonl.txt", lines(completion)),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A small chat model."""
    tokenizer = chat_tokenizer()
    model = tiny_model(tokenizer.vocab_size, context_length=384, n_layer=1)
    return save_checkpoint(tmp_path_factory.mktemp("base") / "step-0000001", model, tokenizer)


@pytest.mark.parametrize("kind", DATA)
def test_inspect_sft_and_generate_take_it(tmp_path, monkeypatch, capsys, base, kind):
    data = DATA[kind]
    monkeypatch.chdir(tmp_path)
    path = Path(data.name)
    if callable(data.write):
        data.write(path)
    else:
        path.write_bytes(data.write if isinstance(data.write, bytes) else data.write.encode())
    files = data.typed.format(path) or data.name
    settings = [
        f"sft.pretrained_checkpoint={base}", "data.seq_len=384", "system.device=cpu", "system.threads=1", "data.num_workers=0",
        *data.settings,
    ]  # fmt: skip
    assert dispatch(["inspect", files, *settings]) == 0
    inspected = capsys.readouterr().out
    assert "ball" in inspected or "Tom" in inspected
    assert data.shown in inspected
    short = [
        "sft.max_steps=3",
        "training.examples_per_step=2",
        "wandb.enabled=false",
        "sft.save_dir=run",
        "sft.prompts=[]",
    ]
    assert dispatch(["sft", f"chats.files={files}", *settings, *short]) == 0
    trained = capsys.readouterr().out
    assert re.search(r"Done in .*: run", trained)
    assert (
        dispatch(["generate", "Who was happy?", "--checkpoint", "run", "--max-new-tokens", "4", "--device", "cpu"]) == 0
    )
    assert capsys.readouterr().out
