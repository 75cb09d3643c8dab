"""The page of `serve` in a real browser, against a server that replies and fails as scripted.

Needs Chromium on the PATH and `pip install playwright`; the accessibility tests also axe-core, as tests/test_accessibility.py says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import serve.server_kit as real_server
from scripted_chat import DESCRIPTION, EXAMPLES, ChatServer, Scripted, running

AXE = Path(os.environ.get("AXE_CORE") or Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js")
STORY = "Once upon a time there was a little cat named Tom. " * 20


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def context(browser) -> Iterator:
    """Tabs that share their storage. Every test has a server of its own, with another port, so what it stores is separate."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(20_000)
    yield context
    context.close()


def opened(context, server: ChatServer, address: str = ""):
    """A tab with the page. `page.errors` collects what a script did wrong."""
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(server.url + address)
    return page


@pytest.fixture(scope="module")
def tab(context):
    page = context.new_page()
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    return page


@pytest.fixture
def page(tab, server) -> Iterator:
    """The page of this test's server, in a tab that the tests share: a new one takes half a second of processor time."""
    page, page.errors = tab, []
    page.goto(server.url)
    page.wait_for_selector(".example")
    yield page
    assert page.errors == []
    assert server.missing == []


def send(page, text: str, replies: int = 1) -> None:
    """Send a message and wait for its replies."""
    page.fill("#input", text)
    page.press("#input", "Enter")
    finished(page, replies)


def finished(page, replies: int = 1) -> None:
    last = page.locator(".message").last
    last.locator("article[aria-busy=false]").nth(replies - 1).wait_for()
    page.wait_for_selector("#send:not([hidden])")


def last_reply(page) -> str:
    return page.locator(".body").last.inner_text()


def texts(page) -> list[str]:
    """All texts of the conversation on display."""
    return page.locator(".text, .body").all_inner_texts()


def shows(page, text: str) -> None:
    """Wait until the last message or reply with this text is on display."""
    page.locator("#messages :is(.text, .body)", has_text=text).last.wait_for()


def press(page, name: str) -> None:
    """Press the last button of this name."""
    page.get_by_role("button", name=name, exact=True).last.click()


def test_first_screen_then_a_prompt_is_answered_word_by_word(page, server):
    assert DESCRIPTION in page.inner_text("#start")
    assert page.locator(".example").all_inner_texts() == EXAMPLES
    reply = Scripted("Tom – the **cat** – 😀 is it.", hold_after=4)
    server.script = [reply]
    page.locator(".example").last.click()
    page.locator(".body", has_text="cat").wait_for()
    assert "😀" not in last_reply(page)
    assert page.locator(".message.assistant article").get_attribute("aria-busy") == "true"
    reply.released.set()
    finished(page)
    assert last_reply(page) == "Tom – the cat – 😀 is it."
    assert page.locator(".body strong").inner_text() == "cat"
    assert page.locator("#start").is_hidden()
    assert page.inner_text("#meter").endswith("of 1,024 tokens used")
    (request,) = server.requests
    assert request["model"] == "tales"
    assert request["messages"] == [{"role": "user", "content": EXAMPLES[2]}]
    assert (request["logprobs"], request["top_logprobs"], request["stream_options"]) == (
        True,
        5,
        {"include_usage": True},
    )
    assert isinstance(request["seed"], int)
    assert "temperature" not in request  # the server's default


def test_a_reply_can_be_stopped_and_the_conversation_continues(page, server):
    server.script = [Scripted("One two three four.", hold_after=2)]
    page.fill("#input", "Count.")
    page.click("#send")
    page.locator(".body", has_text="two").wait_for()
    page.fill("#input", "And then?")
    page.press("#input", "Enter")  # not taken while a reply is being written
    assert page.input_value("#input") == "And then?"
    press(page, "Stop")
    finished(page)
    assert server.left.wait(20)
    assert "stopped by you" in page.inner_text(".facts")
    page.press("#input", "Enter")
    finished(page)
    assert [message["content"] for message in server.requests[-1]["messages"]] == ["Count.", "One two", "And then?"]


def test_versions_of_replies_and_messages_are_kept(page, server):
    server.script = [Scripted("First."), Scripted("Second.")]
    send(page, "Hello?")
    press(page, "Regenerate")
    finished(page)
    assert texts(page) == ["Hello?", "Second."]
    send(page, "More.")
    page.get_by_role("button", name="Edit", exact=True).first.click()
    page.fill(".edit textarea", "Good morning?")
    server.script = [Scripted("Third.")]
    page.press(".edit textarea", "Enter")
    shows(page, "Third.")
    finished(page)
    assert texts(page) == ["Good morning?", "Third."]
    assert [message["content"] for message in server.requests[-1]["messages"]] == ["Good morning?"]
    page.get_by_role("button", name="Previous version").first.click()
    assert texts(page) == ["Hello?", "Second.", "More.", "You said: More."]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Next version"  # there is none before
    page.reload()
    page.locator(".message").last.wait_for()
    assert texts(page) == ["Hello?", "Second.", "More.", "You said: More."]
    page.get_by_role("button", name="Previous version").last.click()
    assert texts(page) == ["Hello?", "First."]


@pytest.mark.slow
def test_a_reply_can_be_changed_and_continued_from(page, server):
    send(page, "Hello?")
    press(page, "Edit")
    page.fill(".edit textarea", "I am a teapot.")
    press(page, "Keep")
    send(page, "Really?")
    assert [message["content"] for message in server.requests[-1]["messages"]] == [
        "Hello?",
        "I am a teapot.",
        "Really?",
    ]


def test_settings_are_explained_checked_sent_and_kept(page, server):
    press(page, "Settings")
    page.fill("#system", "You are a pirate.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Top p").fill("3")
    assert "Not used" in page.inner_text("#setting-top_p-help")
    page.keyboard.press("Escape")
    assert page.inner_text("#open-settings") == "Settings (3 changed)"
    send(page, "Hello?")
    request = server.requests[-1]
    assert (request["temperature"], request["seed"], "top_p" in request) == (0, 7, False)
    assert request["messages"][0] == {"role": "system", "content": "You are a pirate."}
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    send(page, "Again?")
    assert server.requests[-1]["messages"][0]["content"] == "You are a pirate."
    press(page, "Settings (3 changed)")
    press(page, "Back to the defaults")
    press(page, "Close")
    send(page, "Now?")
    assert "temperature" not in server.requests[-1]
    assert server.requests[-1]["messages"][0]["role"] == "user"


def test_two_models_side_by_side_get_the_same_prompt_and_seed_and_read_their_own_replies(page, server):
    page.select_option("#beside", "poems")
    server.script = [Scripted("First one."), Scripted("First one.")]
    send(page, "Hello?", replies=2)
    first, second = server.requests
    assert {first["model"], second["model"]} == {"tales", "poems"}
    assert (first["seed"], first["messages"]) == (second["seed"], second["messages"])
    boxes = [card.bounding_box() for card in page.locator(".lanes article").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    page.locator(".lanes article").last.get_by_role("button", name="Edit").click()
    page.fill(".edit textarea", "Another one.")
    press(page, "Keep")
    send(page, "And?", replies=2)
    replies = {request["model"]: request["messages"][1]["content"] for request in server.requests[2:]}
    assert replies == {"tales": "First one.", "poems": "Another one."}
    press(page, "Regenerate both")
    finished(page, replies=2)
    assert len(server.requests) == 6
    assert server.requests[-1]["seed"] == server.requests[-2]["seed"] != first["seed"]


def test_a_base_model_continues_the_text_beside_one_that_chats(page, server):
    server.base_models = {"poems"}
    page.select_option("#beside", "poems")
    send(page, "Once upon a time", replies=2)
    send(page, "On and", replies=2)
    assert page.locator(".lanes").last.locator(".body").all_inner_texts() == ["You said: On and", " and on"]
    prompts = [request["prompt"] for request in server.requests if "prompt" in request]
    assert prompts == ["Once upon a time", "On and"]  # each text separately
    page.get_by_role("button", name="Why did it say that?").last.click()
    assert [row.split()[0] for row in page.locator(".panel .row").all_inner_texts()] == ["·so", "·on"]


def test_the_page_works_with_the_real_server(tab):
    with real_server.running() as (address, server):
        page, page.errors = tab, []
        page.goto(address)
        page.wait_for_selector(".example")
        assert "A description." in page.inner_text("#start")
        press(page, "Settings")
        assert page.get_attribute("#system", "placeholder") == "Be kind."
        page.get_by_label("Longest reply").fill("6")
        page.get_by_label("Seed").fill("3")
        page.keyboard.press("Escape")
        page.select_option("#beside", "base")
        send(page, "Hello?", replies=2)
        assert all("6 tokens" in facts for facts in page.locator(".facts").all_inner_texts())
        before = page.locator(".body").all_inner_texts()
        press(page, "Regenerate both")
        finished(page, replies=2)
        assert page.locator(".body").all_inner_texts() == before  # the same seed
        for why in page.get_by_role("button", name="Why did it say that?").all():
            why.click()
        assert page.locator(".tokens").first.locator("span").count() == 6
        assert page.locator(".panel").count() == 2
        send(page, "word " * 300, replies=2)
        assert "longer than the model can read" in page.locator(".problem").first.inner_text()
        assert server.lines == [line for line in server.lines if "error" not in line]
        assert page.errors == []


def test_why_shows_each_token_with_its_alternatives(page, server):
    server.script = [Scripted("Tom lost his extraordinary ball.", thoughts="A question about loss.")]
    send(page, "What did Tom lose?")
    assert "A question about loss." not in page.inner_text("#messages")
    page.get_by_text("Thoughts").click()
    assert "A question about loss." in page.inner_text("#messages")
    press(page, "Why did it say that?")
    rows = page.locator(".panel .row")
    assert rows.all_inner_texts()[0].startswith(
        "·the"
    )  # chosen at first: the least probable token, which "the" could replace
    assert page.locator(".panel .it code").inner_text() == "·extraordinary"
    page.locator(".tokens [tabindex='0']").focus()
    page.keyboard.press("Home")
    assert page.locator(".panel .it code").inner_text() == "Tom"
    page.keyboard.press("ArrowRight")
    assert page.locator(".panel .it code").inner_text() == "·lost"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "lost, 60.7%"
    page.wait_for_selector("#status:has-text('Alternatives: ·the 40.7%')", state="attached")
    page.locator(".tokens span").nth(4).hover()
    assert page.locator(".panel .it code").inner_text() == "·ball."
    page.mouse.move(0, 0)
    assert page.locator(".panel .it code").inner_text() == "·lost"
    page.locator(".tokens span").nth(2).click()
    assert page.locator(".panel .it code").inner_text() == "·his"
    assert page.locator(".tokens [aria-selected=true]").count() == 1
    page.reload()  # the probabilities are kept with the conversation
    press(page, "Why did it say that?")
    assert page.locator(".tokens span").count() == 5


def test_files_and_long_texts(page, server, tmp_path):
    story, photo, large = tmp_path / "story.txt", tmp_path / "photo.jpg", tmp_path / "large.txt"
    story.write_bytes(b"\xef\xbb\xbf" + STORY.replace(". ", ".\r\n").encode())
    photo.write_bytes(bytes(range(256)))
    large.write_bytes(b"a" * (1 << 21))
    page.fill("#input", "Who is this about?")
    for file, sentence in ((photo, "is not a text file"), (large, "larger than 1 MB"), (story, "was added")):
        page.set_input_files("#file", file)
        page.locator("#notice", has_text=sentence).wait_for()
    assert page.input_value("#input").startswith(
        "Who is this about?\n\nOnce upon a time there was a little cat named Tom.\nOnce"
    )
    page.reload()
    page.wait_for_selector(".example")
    assert page.input_value("#input").startswith("Who is this about?\n\nOnce")  # the draft
    page.press("#input", "Enter")
    finished(page)
    folded = page.locator(".text")
    height = folded.bounding_box()["height"]
    page.get_by_role("button", name="Show all 224 words").click()
    assert folded.bounding_box()["height"] > 2 * height
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File(['Dropped text'], 'dropped.txt'));
            for (const name of ['dragenter', 'dragover', 'drop']) {
                document.body.dispatchEvent(new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
            }
        }"""
    )
    page.locator("#notice", has_text="dropped.txt was added").wait_for()
    assert page.input_value("#input") == "Dropped text"
    assert page.locator("#drop").is_hidden()


FULL = {"message": "This model reads at most 1024 tokens; the messages have 1100.", "code": "context_length_exceeded"}
PROBLEMS = [
    (Scripted(status=429, headers={"Retry-After": "7"}), "The server is busy. It asks to try again in 7 seconds."),
    (Scripted(status=503), "The server is busy. Try again in a moment."),
    (Scripted(status=400, error=FULL), "This conversation is longer than the model can read."),
    (Scripted(status=404, error={"message": "No model 'tales'.", "code": "model_not_found"}), "No model 'tales'."),
    (Scripted(status=413, error={"message": "At most 1 MB."}), "too long for the server. (At most 1 MB.)"),
    (Scripted(status=500, error={"message": "It broke."}), "The server failed: It broke."),
    (
        Scripted(status=400, error={"message": "top_p must be at most 1."}),
        "did not accept the request: top_p must be at most 1.",
    ),
    (Scripted("One two three.", drop_after=2), "The connection ended in the middle of the reply."),
    (Scripted("One two.", error={"message": "Out of memory."}), "The server failed: Out of memory."),
]


@pytest.mark.parametrize(
    "problems", [PROBLEMS[::3], pytest.param(PROBLEMS, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_problems_are_said_plainly_and_can_be_retried(page, server, problems):
    for number, (problem, sentence) in enumerate(problems):
        server.script = [problem, Scripted("Now it works.")]
        send(page, f"Question {number}")
        box = page.locator(".problem")
        assert sentence in box.inner_text()
        assert texts(page)[-2] == f"Question {number}"
        box.get_by_role("button").last.click()
        page.locator(".body", has_text="Now it works.").nth(number).wait_for()
        finished(page)
        assert page.locator(".problem").count() == 0
    assert texts(page)[1::2] == ["Now it works."] * len(problems)


@pytest.mark.slow
def test_a_reply_that_was_cut_off_by_a_reload_can_be_written_again(page, server):
    server.script = [Scripted("One two three.", hold_after=2)]
    page.fill("#input", "Count.")
    page.press("#input", "Enter")
    page.locator(".body", has_text="two").wait_for()
    page.reload()
    page.locator(".problem").wait_for()
    assert texts(page) == ["Count.", "One two"]
    press(page, "Regenerate this reply")
    shows(page, "You said: Count.")


def test_a_lost_connection_loses_no_text_and_its_return_is_announced(page, server):
    server.lost = True
    send(page, "Are you there?")
    assert "The server cannot be reached." in page.inner_text(".problem")
    server.lost = False
    page.locator("#notice", has_text="The server answers again.").wait_for()
    press(page, "Try again")
    shows(page, "You said: Are you there?")
    page.evaluate("async () => { (await import('/assets/serve_api.js')).limits.silence = 300; }")
    silent = Scripted("One two three.", hold_after=1)
    server.script = [silent]
    server.keep_alive = False
    send(page, "Still there?")
    silent.released.set()
    assert "The server has sent nothing for" in page.inner_text(".problem")


@pytest.mark.slow
def test_a_server_with_a_key_asks_for_it(page, server):
    server.key = "open sesame"
    page.reload()
    page.locator(".problem", has_text="asks for an API key").wait_for()
    page.fill("#input", "My text")
    page.locator("#start input").fill("wrong")
    press(page, "Use this key")
    page.locator(".problem", has_text="asks for an API key").wait_for()
    page.locator("#start input").fill("open sesame")
    press(page, "Use this key")
    page.wait_for_selector(".example")
    page.press("#input", "Enter")
    finished(page)
    server.key = "another"
    send(page, "And now?")
    page.locator(".message .problem input").fill("another")
    press(page, "Use this key")
    shows(page, "You said: And now?")
    assert texts(page)[0] == "My text"
    assert "key" not in server.requests[-1]


@pytest.mark.slow
def test_two_tabs_do_not_destroy_each_others_conversations(context, page, server):
    send(page, "From the first tab")
    other = opened(context, server)
    other.wait_for_selector(".example")
    send(other, "From the second tab")
    page.locator("#list a", has_text="From the second tab").wait_for()
    # Both in one conversation, each with a message of its own that the other one does not know when it sends.
    page.click("#list a:has-text('From the second tab')")
    shows(page, "You said: From the second tab")
    slow = [Scripted("Reply to A.", hold_after=1), Scripted("Reply to B.", hold_after=1)]
    server.script = list(slow)
    for tab, text in ((page, "Message A"), (other, "Message B")):
        tab.fill("#input", text)
        tab.press("#input", "Enter")
        tab.locator(".body", has_text="Reply").wait_for()
    for reply in slow:
        reply.released.set()
    finished(page)
    finished(other)
    assert texts(page)[-2:] == ["Message A", "Reply to A."]
    assert texts(other)[-2:] == ["Message B", "Reply to B."]
    page.reload()
    page.locator(".message").last.wait_for()
    assert page.locator(".versions", has_text="of 2").count() == 1
    # A conversation that is deleted in one tab is not gone from the other one unasked.
    press(page, "Delete")
    other.locator("#notice", has_text="deleted in another tab").wait_for()
    press(other, "Keep it")
    page.locator("#list a", has_text="From the second tab").wait_for()
    assert texts(other)[-2:] == ["Message B", "Reply to B."]
    other.close()
    assert other.errors == []


@pytest.mark.slow
def test_conversations_are_listed_renamed_and_deleted_with_undo(page, server):
    send(page, "First conversation")
    page.click("#new")
    page.wait_for_selector(".example")
    assert page.input_value("#input") == ""
    page.fill("#input", "A draft")
    page.locator(".example").first.click()  # leaves the draft where it is
    finished(page)
    assert page.input_value("#input") == "A draft"
    press(page, "Delete")
    page.wait_for_selector(".example")
    assert page.input_value("#input") == ""
    send(page, "Second conversation")
    assert page.locator("#list a").all_inner_texts() == ["Second conversation", "First conversation"]
    press(page, "Rename")
    page.fill("form.rename input", "About cats")
    page.keyboard.press("Enter")
    assert page.inner_text("#title") == "About cats"
    assert page.locator("#list a[aria-current]").inner_text() == "About cats"
    press(page, "Delete")
    assert page.locator("#list a").all_inner_texts() == ["First conversation"]
    press(page, "Undo")
    shows(page, "You said: Second conversation")
    page.click("#list a:has-text('First')")
    shows(page, "You said: First conversation")
    page.go_back()
    shows(page, "You said: Second conversation")


@pytest.mark.slow
def test_another_conversation_can_be_read_while_a_reply_is_written(page, server):
    send(page, "First conversation")
    page.click("#new")
    slow = Scripted("A long reply.", hold_after=1)
    server.script = [slow]
    page.fill("#input", "Second conversation")
    page.press("#input", "Enter")
    page.locator(".body", has_text="A").wait_for()
    page.click("#list a:has-text('First')")
    shows(page, "You said: First conversation")
    assert "writing" in page.locator("#list a", has_text="Second").inner_text()
    slow.released.set()
    page.locator("#list a", has_text="writing").wait_for(state="detached")
    page.click("#list a:has-text('Second')")
    shows(page, "A long reply.")


@pytest.mark.slow
def test_a_full_storage_gives_up_probabilities_before_messages(browser, server):
    context = browser.new_context()
    # A browser whose storage holds 12,000 characters.
    context.add_init_script(
        """const set = Storage.prototype.setItem;
        Storage.prototype.setItem = function (key, text) {
            const size = Object.keys(this).reduce((sum, name) => sum + (name === key ? 0 : this[name].length), text.length);
            if (this === localStorage && size > 12000) throw new DOMException('full', 'QuotaExceededError');
            set.call(this, key, text);
        };"""
    )
    page = opened(context, server)
    page.wait_for_selector(".example")
    for number in range(4):
        page.click("#new")
        server.script = [Scripted("one two three four five six seven eight nine ten " * 2)]
        send(page, f"Question {number}")
    assert page.locator("#list a").count() == 4
    assert page.locator("#notice").is_hidden()
    page.click("#list a:last-child >> nth=-1")
    assert last_reply(page).startswith("one two three")
    page.reload()
    page.locator(".message").last.wait_for()
    page.fill("#input", "long " * 4000)
    page.press("#input", "Enter")
    page.locator("#notice", has_text="The storage of this browser is full").wait_for()
    finished(page)
    assert len(server.requests[-1]["messages"][-1]["content"]) == 19_999  # sent all the same
    context.close()
    assert page.errors == []


def test_a_screen_reader_hears_a_reply_once(page, server):
    page.evaluate(
        """() => {
            window.heard = [];
            const status = document.getElementById('status');
            new MutationObserver(() => status.textContent && heard.push(status.textContent)).observe(status, { childList: true });
        }"""
    )
    send(page, "Hello you three?")
    page.wait_for_selector("#status:has-text('You said')", state="attached")
    assert page.evaluate("window.heard") == ["tales: You said: Hello you three?"]
    assert page.locator("[aria-live], [role=log]").count() == 0


HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"><svg onload="window.hacked = 3">
[click](javascript:window.hacked=4) [data](data:text/html,<script>alert(1)</script>) <javascript:window.hacked=5>
![pixel](https://elsewhere.example/pixel.png) <iframe srcdoc="<script>parent.hacked = 6</script>"></iframe>
[mixed](JaVaScRiPt:window.hacked=7) <style>body { display: none }</style> <a href="javascript:window.hacked=8">link</a>
```html
<script>window.hacked = 9</script>
```
| a | <b onmouseover="window.hacked = 10">b</b> |
|---|---|
| <form action="https://elsewhere.example"><input name=q></form> | [x](https://good.example "title") |
"""


def test_a_hostile_reply_runs_nothing_and_loads_nothing(context, server):
    requested = []
    page = opened(context, server)
    page.wait_for_selector(".example")
    page.on("request", lambda request: requested.append(request.url))
    page.on("dialog", lambda dialog: page.errors.append("a dialog opened"))
    server.script = [Scripted(HOSTILE)]
    page.fill("#input", HOSTILE)
    page.press("#input", "Enter")
    finished(page)
    press(page, "Why did it say that?")
    press(page, "Why did it say that?")
    assert page.evaluate("window.hacked") is None
    assert all(url.startswith(server.url) for url in requested)
    assert page.locator("#messages :is(script, img, svg, iframe, style, form, input, b)").count() == 0
    links = page.locator(".body a")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://elsewhere.example/pixel.png",
        "https://elsewhere.example",  # of the form, as text
        "https://good.example",
    ]
    assert links.last.get_attribute("rel") == "noopener noreferrer nofollow"
    assert "<script>window.hacked = 1</script>" in last_reply(page)
    page.close()
    assert page.errors == []


def test_on_a_phone_everything_fits_and_works_by_touch(browser, server):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = opened(context, server)
    page.wait_for_selector(".example")
    cells = "| " + " | ".join(f"column{n}" for n in range(20)) + " |"
    server.script = [
        Scripted(f"{'long' * 100} `{'code' * 50}`\n\n{cells}\n{'|---' * 20}|\n{cells}\n\n```\n{'wide ' * 60}\n```")
    ]
    page.fill("#input", "x" * 300)
    page.tap("#send")
    finished(page)
    page.get_by_role("button", name="Why did it say that?").tap()
    page.locator(".tokens span").first.tap()
    assert page.locator(".panel .it").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.getElementById('scroller').scrollWidth") <= 390
    page.tap("#menu")
    assert page.locator("#new").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#new").is_hidden()
    assert page.evaluate("document.activeElement.id") == "menu"
    context.close()
    assert page.errors == []


def violations(page) -> list:
    found = page.evaluate("axe.run()")["violations"]
    return [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_no_violation(browser, server, width, scheme):
    if not AXE.is_file():
        pytest.skip(f"{AXE} is missing: npm install axe-core, or set AXE_CORE")
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    context.set_default_timeout(20_000)
    page = opened(context, server)
    page.wait_for_selector(".example")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == [], "first screen"
    server.script = [Scripted(f"## Title\n\n**Bold** text and `code`.\n\n{HOSTILE}\n\n> Quoted\n\n1. one\n   - two")]
    page.select_option("#beside", "poems")
    send(page, STORY, replies=2)
    press(page, "Regenerate both")
    finished(page, replies=2)
    assert violations(page) == [], "side by side"
    page.select_option("#beside", "")
    send(page, "Why?")
    server.script = [Scripted(status=429)]
    send(page, "And now?")
    press(page, "Why did it say that?")
    assert violations(page) == [], "why, and a problem"
    page.get_by_role("button", name="Edit", exact=True).first.click()
    press(page, "Rename")
    assert violations(page) == [], "editing"
    page.click("#open-settings")
    page.get_by_label("Top p").fill("3")
    assert violations(page) == [], "settings"
    context.close()
