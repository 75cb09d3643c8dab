"""Token probabilities in a terminal, over a pipe and on a page."""

import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import lively_model, tiny_tokenizer
from token_prob_samples import explanation_of

from mini_chat_gpt import sft_generate
from mini_chat_gpt.chat import loop
from mini_chat_gpt.chat.token_probs_view import render_page, render_text
from mini_chat_gpt.chat_format import ChatFormat
from mini_chat_gpt.checkpoints.save import save_checkpoint
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.token_probs import Candidate

DRAWN = Sampling(temperature=0.8, top_k=40, max_new_tokens=20)


# In a terminal


def test_a_short_reply_has_all_its_tokens_in_the_table_a_long_one_the_most_surprising():
    short = render_text(explanation_of([0.5] * 12), 100, False)
    assert len(re.findall(r"^ *\d+  t\d+ ", short, re.MULTILINE)) == 12
    assert "most surprising" not in short
    long = explanation_of([0.99] * 40 + [0.01] * 12)
    shown = render_text(long, 100, False, hint="ask for more")
    assert re.findall(r"^ *\d+  (t\d+) ", shown, re.MULTILINE) == [f"t{n}" for n in range(40, 52)]
    assert "The 12 most surprising of them; ask for more:" in shown
    assert len(re.findall(r"^ *\d+  t\d+ ", render_text(long, 100, False, every=True), re.MULTILINE)) == 52


def test_in_a_notebook_the_text_is_returned(monkeypatch):
    outside = render_text(explanation_of([0.5]), 80, color=False)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # rich would display HTML
    assert render_text(explanation_of([0.5]), 80, color=False) == outside


def test_the_five_steps_have_five_colors_and_without_colors_there_are_numbers():
    explanation = explanation_of([0.01, 0.1, 0.3, 0.7, 0.95])
    colored = render_text(explanation, 100, True)
    styles = dict.fromkeys(re.findall(r"\x1b\[((?:\d+;)*)38;5;16;48;5;\d+m", colored))
    assert [*styles] == ["1;4;", "4;", ""]  # underlined, too: color is not enough
    assert len(set(re.findall(r"48;5;\d+m", colored))) == 5
    plain = render_text(explanation, 100, False)
    assert "\x1b" not in plain
    assert "[t0 1.0%] [t1 10.0%] t2 t3 t4" in plain


def test_sampling_probabilities_are_shown_only_for_sampled_replies():
    assert "sampled" not in render_text(explanation_of([0.5]), 100, False)
    text = render_text(explanation_of([0.5], sampling=Sampling(temperature=0.5, top_k=3)), 100, False)
    assert "“sampled” the probability with temperature 0.5, top_k 3." in text


@pytest.mark.parametrize("width", [30, 50, 80])
def test_no_line_is_longer_than_the_terminal_and_no_alternative_is_broken(width):
    shown = render_text(explanation_of([0.5, 0.01]), width, False)
    assert max(map(len, shown.splitlines())) <= width
    assert width == 30 or len(re.findall(r"·other\d \d\.\d%|·other\d 0\.\d+%", shown)) == 10


@pytest.mark.parametrize("colors", [False, True])
def test_control_characters_of_a_reply_do_not_reach_the_terminal(colors):
    shown = render_text(explanation_of([0.5], "Hi\x1b[2J\x07[bold]!"), 100, colors)
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "Hi\\x1b[2J\\x07[bold]!" in re.sub(r"\x1b\[[0-9;]*m", "", shown)


# On a page


EVIL = "</script><script>alert('x')</script>&\"BODY STYLE SCRIPT"


def test_a_page_escapes_what_model_and_user_wrote_and_loads_nothing():
    explanation = replace(explanation_of([0.5, 0.1], EVIL, DRAWN), prompt=f"<|user|>{EVIL}")
    evil = Candidate(1, EVIL, -1.0, 0.5)
    explanation = replace(explanation, tokens=tuple(replace(token, others=(evil,)) for token in explanation.tokens))
    written = render_page(explanation)
    assert "<script>alert" not in written
    assert written.count("</script>") == 2
    assert not re.search(r"(src|href)=|https?:|@import|url\(", written)
    assert f"{html.escape(EVIL)}</b>" in written
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', written)
    assert json.loads(data[1])["tokens"][1][0][0] == EVIL


def test_a_page_can_be_read_without_scripts_and_in_the_dark():
    written = render_page(explanation_of([0.02, 0.95], sampling=DRAWN))
    first, second = re.findall(r'<b class="(s\d)[^"]*" tabindex="0" title="([^"]*)"', written)
    assert (first[0], second[0]) == ("s0", "s4")
    assert html.unescape(first[1]).splitlines()[:3] == ["t0 2.0% (sampled 100%)", "rank 1", "·other0 5.0% (sampled 0%)"]
    assert "prefers-color-scheme: dark" in written
    assert "sampled" not in render_page(explanation_of([0.02])).partition("<script")[0]


# The commands


@pytest.fixture(scope="module", params=["chat", "base"])
def checkpoint(request, tmp_path_factory) -> Path:
    tokenizer = tiny_tokenizer()
    if request.param == "chat":
        tokenizer.chat_format = ChatFormat(default_system="Be kind.")
    model = lively_model(tokenizer.vocab_size + 5, context_length=256)  # with padding rows in the embedding table
    return save_checkpoint(tmp_path_factory.mktemp("run") / "step-1", model, tokenizer)


SHORT = ["--device", "cpu", "--seed", "3", "--max-new-tokens", "9"]


def piped(monkeypatch, checkpoint: Path, text: str) -> int:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return loop.main(["--checkpoint", str(checkpoint), *SHORT])


def test_why_over_a_pipe_goes_to_standard_error(monkeypatch, capsys, checkpoint, tmp_path):
    assert piped(monkeypatch, checkpoint, "Tom\nSara\n") == 0
    replies = capsys.readouterr().out
    assert piped(monkeypatch, checkpoint, f"Tom\n/why\n/why all\n/why {tmp_path / 'why.html'}\nSara\n") == 0
    out, err = capsys.readouterr()
    assert out == replies
    assert err.count("mean probability") == 2
    assert "\x1b" not in err
    assert (tmp_path / "why.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(UserError, match="Line 1 of standard input: There is no reply yet"):
        piped(monkeypatch, checkpoint, "/why\n")


def run_generate(checkpoint: Path, *arguments: str) -> int:
    return sft_generate.main(["--checkpoint", str(checkpoint), *SHORT, *arguments])


def test_generate_explains_the_same_reply_after_it(capsys, checkpoint):
    run_generate(checkpoint, "--prompt", "Tom")
    reply = capsys.readouterr().out
    assert run_generate(checkpoint, "--prompt", "Tom", "--why") == 0
    out = capsys.readouterr().out
    assert out.startswith(reply)
    assert "mean probability" in out.removeprefix(reply)
    assert "\x1b" not in out.removeprefix(reply)


def test_generate_writes_a_page_and_standard_output_stays_the_reply(capsys, checkpoint, tmp_path):
    run_generate(checkpoint, "--prompt", "Tom")
    reply = capsys.readouterr().out
    file = tmp_path / "why.html"
    assert run_generate(checkpoint, "--prompt", "Tom", "--why", str(file)) == 0
    assert capsys.readouterr().out == reply
    assert "Why did it say that?" in file.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        run_generate(checkpoint, "--prompt", "Tom", "--why", str(file))
    assert capsys.readouterr().out == "", "the error comes before the reply"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "Tom", "--why", "page.txt"], "'page.txt' is not the name of a page"),
        (["--prompt", "Tom", "--why", "{file}/page.html"], "Can't write .*page.html: file exists"),
        (["--test", "--why"], "--why works with a prompt only"),
        (["--interactive", "--why"], "in a chat, type /why"),
    ],
)
def test_a_mistake_is_one_clear_sentence(checkpoint, tmp_path, arguments, message):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        run_generate(checkpoint, *(part.format(file=tmp_path / "file") for part in arguments))
