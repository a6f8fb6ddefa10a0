"""`mm-spine serve`: the page in a browser, and what requests that are no page's own may do, which is nothing."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from browser import Opened, open_page
from PIL import Image

from mm_spine.benchmarks.digits import BENCHMARK as DIGITS
from mm_spine.commands import ask_session, question_queue, serve_page
from mm_spine.commands.ask_session import AskOptions, AskResult, VotedResponse, VoteOutcome, ask_settings
from mm_spine.commands.page_html import page_of
from mm_spine.commands.question_queue import PageFields, PageState, QuestionQueue, Upload
from mm_spine.commands.serve_page import check_host, running
from mm_spine.config import ConfigError
from mm_spine.reporting.entropy_colours import Token
from mm_spine.sampling.hf import HFSampler
from mm_spine.types import Vote

WORDS = "What is the sum of the digits?"
MEGABYTES = 1
HOSTILE = '<img src=x onerror=alert(1)></script><script>alert(2)</script>${alert(3)}{{alert}}`" onmouseover="alert(4)'

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason='no gradio: pip install -c constraints.txt "mm-spine[demo]"')


class Served(NamedTuple):
    address: str
    app: Any
    queue: QuestionQueue


@pytest.fixture(scope="module")
def queue() -> QuestionQueue:
    return QuestionQueue(ask_session.load(ask_settings(AskOptions())))


@pytest.fixture(scope="module")
def served(queue: QuestionQueue) -> Iterator[Served]:
    """The page on a free port of this machine."""
    with running(queue, max_upload_mb=MEGABYTES) as (address, app):
        yield Served(address, app, queue)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two handwritten digits, 4 and 7."""
    path = tmp_path_factory.mktemp("pictures") / "digits.png"
    DIGITS.load("held_out").questions[0].images[0].save(path)  # type: ignore[union-attr]
    return path


# In a browser


def fill_in(opened: Opened, picture: Path, words: str = WORDS, steps: int = 0) -> None:
    """Upload, wait until the page shows the image, and fill in the rest."""
    page = opened.page
    page.set_input_files("input[type=file]", str(picture))
    page.locator(".previews img").wait_for()
    page.get_by_label("Question").fill(words)
    if steps:
        page.get_by_text("Options").click()
        page.get_by_label("number input for Adapt first, steps").fill(str(steps))


def ask_in(opened: Opened, picture: Path, steps: int = 0) -> None:
    fill_in(opened, picture, steps=steps)
    opened.page.get_by_role("button", name="Ask", exact=True).click()
    opened.page.locator("text=/responses, \\d+ tokens/").wait_for(timeout=60_000)


def clean(opened: Opened) -> None:
    assert not opened.outside(), "the page asks nobody but this machine"
    assert not opened.errors
    assert opened.too_wide() == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_question_is_answered_on_the_page(
    served: Served, picture: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    with open_page(served.address, width, dark) as opened:
        ask_in(opened, picture, steps=2 if dark else 0)
        page = opened.page
        assert page.locator(".outcome .answer").all_inner_texts() == ["11"] * (2 if dark else 1)
        assert sum(map(int, page.locator(".outcome").first.locator(".count").all_inner_texts())) == 16
        assert page.locator(".legend .token").count() == 5
        fork = page.locator(".tokens .fork").first
        fork.hover()
        tip = page.evaluate("e => getComputedStyle(e, '::after').content", fork.element_handle())
        assert "nats" in tip and "fork" in tip
        page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
        clean(opened)
        assert opened.fetched()


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_the_example_is_asked_by_two_clicks_and_its_votes_are_downloaded(
    served: Served, width: int, dark: bool
) -> None:
    with open_page(served.address, width, dark) as opened:
        page = opened.page
        page.get_by_text("digits_model").wait_for()
        page.get_by_role("button", name="Example", exact=True).click()
        page.locator(".previews img").wait_for()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator("text=/16 responses, \\d+ tokens/").wait_for(timeout=60_000)
        saved = []
        for link in page.locator(".files a").all():
            with page.expect_download() as download:
                link.click()
            saved.append((download.value.suggested_filename, Path(download.value.path()).read_text()))
        assert [name for name, _ in saved] == ["answer.json", "answer.csv"]
        content = json.loads(saved[0][1])
        assert content["answer"] == page.locator(".outcome .answer").inner_text() and content["images"] == [
            "digits.png"
        ]
        assert len(content["before"]["responses"]) == len(saved[1][1].splitlines()) - 1 == 16
        clean(opened)


def test_images_are_added_pasted_and_shown_as_the_model_gets_them(
    served: Served, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_bytes(b"no image")
    with open_page(served.address, 390) as opened:
        page = opened.page
        page.get_by_role("heading", name="Ask about an image").wait_for()
        page.set_input_files("input[type=file]", [str(picture), str(tmp_path / "notes.png")])
        page.get_by_text("cannot read image notes.png").wait_for()
        assert page.locator(".previews img").count() == 1
        page.evaluate(PASTE)
        page.get_by_text("pasted.png, 60 × 40").wait_for()
        assert page.locator(".previews img").count() == 2
        clean(opened)


PASTE = """async () => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 60, height: 40});
  const data = new DataTransfer();
  data.items.add(new File([await new Promise(done => canvas.toBlob(done))], "pasted.png", {type: "image/png"}));
  document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
}"""


def test_what_is_wrong_is_said_on_the_page(served: Served, picture: Path) -> None:
    with open_page(served.address) as opened:
        page = opened.page
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_text("There is no image yet").wait_for()
        assert "There is no image yet" in page.locator("#answer").inner_text()
        page.set_input_files("input[type=file]", str(picture))
        page.get_by_label("Question").fill("  ")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_text("the question is empty").wait_for()
        said = page.locator("#answer").inner_text()
        assert "the question is empty" in said and "There is no image yet" not in said
        clean(opened)


def test_what_a_model_writes_runs_nowhere(served: Served, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = PageState(1, HOSTILE, outcome_of(HOSTILE), HOSTILE)
    monkeypatch.setattr(QuestionQueue, "answer", lambda self, fields, page: iter([shown, shown]))
    with open_page(served.address) as opened:
        alerts: list[str] = []
        opened.page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        opened.page.get_by_role("button", name="Ask", exact=True).click()
        opened.page.locator(".outcome .answer").wait_for()
        opened.page.locator(".tokens .token").hover()
        assert opened.page.locator(".outcome .answer").inner_text() == HOSTILE
        assert opened.page.locator(".tokens .token").inner_text() == HOSTILE
        assert opened.page.locator(".mm-spine img, .mm-spine script").count() == 0
        assert not alerts
        clean(opened)


def outcome_of(text: str) -> AskResult:
    response = VotedResponse(text, text, (Token(text, 1.0, True),))
    return AskResult(VoteOutcome(Vote(text, 1.0, {text: 1}, 1.0, 1), (response,), response, 0.1, 1))


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The rollouts of the first step to come wait for this event: no browser is too slow for what precedes them."""
    complete, calls, release = HFSampler.complete, itertools.count(), threading.Event()

    def held(self: HFSampler, *arguments: Any, **named: Any) -> Any:
        if next(calls) >= question_queue.ROUNDS:
            release.wait(120)
        return complete(self, *arguments, **named)

    monkeypatch.setattr(HFSampler, "complete", held)
    return release


def test_stop_ends_the_work_and_says_so(served: Served, picture: Path, release: threading.Event) -> None:
    with open_page(served.address) as opened:
        page = opened.page
        fill_in(opened, picture, steps=32)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_text("Adapting: 32 steps").wait_for(timeout=60_000)
        page.get_by_role("button", name="Stop", exact=True).click()
        page.get_by_text("Stopped.").wait_for()
        release.set()
        assert becomes_free(served.queue)
        assert page.get_by_text("Stopped.").is_visible(), "nothing is written over it"
        clean(opened)


def test_a_closed_page_ends_its_work_and_a_waiting_one_is_notified(
    served: Served, picture: Path, release: threading.Event
) -> None:
    with open_page(served.address) as opened:
        event = next(i for i, row in served.app.fns.items() if row.name == "on_ask")
        upload = {"files": ("a.png", picture.read_bytes(), "image/png")}
        with httpx.Client(base_url=served.address, timeout=30, trust_env=False) as client:
            (path,) = client.post("/gradio_api/upload", files=upload).json()
            data = [[file_data(path)], WORDS, serve_page.UNSET, "", 64, 1.0, 32]
            joined = {"data": data, "fn_index": event, "session_hash": "closed"}
            assert client.post("/gradio_api/queue/join", json=joined).status_code == 200
            with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "closed"}) as stream:
                lines = stream.iter_lines()
                assert any("of 64 responses" in line for line in lines)
                fill_in(opened, picture)
                opened.page.get_by_role("button", name="Ask", exact=True).click()
                opened.page.get_by_text("Waiting: another question").wait_for()
                release.set()
        opened.page.locator("text=/16 responses, \\d+ tokens/").wait_for(timeout=60_000)
        assert becomes_free(served.queue)


def becomes_free(queue: QuestionQueue) -> bool:
    """Within some seconds: gradio notices by and by that a page has gone."""
    return any(not queue._open or time.sleep(0.1) for _ in range(200))


# Requests that no page sends


def post(served: Served, image: Any, **headers: str) -> str:
    """What the server answers to a question with this in the place of the image, sent as the page sends it."""
    event = next(i for i, row in served.app.fns.items() if row.name == "on_ask")
    data = [[image], WORDS, serve_page.UNSET, "", 4, 1.0, 0]
    joined = {"data": data, "fn_index": event, "session_hash": "test"}
    with httpx.Client(base_url=served.address, timeout=30, headers=headers, trust_env=False) as client:
        answer = client.post("/gradio_api/queue/join", json=joined)
        if answer.status_code != 200:
            return answer.text
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "test"}) as stream:
            lines = [json.loads(line.removeprefix("data:")) for line in stream.iter_lines() if line.startswith("data:")]
    return json.dumps(lines)


def file_data(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}, **more}


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that images are read from while a test runs."""
    found: list[str] = []
    read, open_ = Path.read_bytes, Image.open

    def noted(self: Path) -> bytes:
        found.append(str(self))
        return read(self)

    def noted_open(file: Any, *args: Any, **named: Any) -> Any:
        found.append(str(file))
        return open_(file, *args, **named)

    monkeypatch.setattr(Path, "read_bytes", noted)
    monkeypatch.setattr(Image, "open", noted_open)
    return found


def test_no_path_of_a_request_is_opened(served: Served, picture: Path, opened_files: list[str]) -> None:
    inside = os.environ["GRADIO_TEMP_DIR"]
    for image in (
        str(picture),
        file_data(str(picture)),
        file_data(f"{inside}/../{picture.relative_to(picture.anchor)}"),
        file_data(f"{inside}/../..{picture}"),
        {"path": str(picture)},
        {"path": str(picture), "is_stream": True, "meta": {"_type": "gradio.FileData"}},
        {"path": None, "url": picture.as_uri(), "meta": {"_type": "gradio.FileData"}},
    ):
        assert "boxed" not in post(served, image), image
    assert str(picture) not in opened_files and not opened_files


def test_no_address_of_a_request_is_fetched(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import processing_utils

    fetched: list[str] = []

    async def fetch(url: str, **named: Any) -> str:
        fetched.append(url)
        raise ValueError("no network")

    for name in ("async_ssrf_protected_download", "async_ssrf_protected_get"):
        monkeypatch.setattr(processing_utils, name, fetch)
    address = "https://example.invalid/a.png"
    for image in (file_data(address), file_data("x", url=address), {"path": None, "url": address}):
        assert "boxed" not in post(served, image)
    assert not fetched


def test_no_file_of_this_machine_is_served(served: Served, repository: Path, picture: Path) -> None:
    for path in ("/etc/passwd", picture, repository / "pyproject.toml", "pyproject.toml"):
        assert httpx.get(f"{served.address}gradio_api/file={path}", trust_env=False).status_code in (403, 404), path


def test_a_file_above_the_limit_is_refused(served: Served) -> None:
    large = {"files": ("a.png", b"\x89PNG" + bytes(MEGABYTES * 2**20), "image/png")}
    assert httpx.post(f"{served.address}gradio_api/upload", files=large, trust_env=False).status_code == 413


def test_the_question_can_be_asked_by_upload_alone(served: Served, picture: Path) -> None:
    files = {"files": ("a.png", picture.read_bytes(), "image/png")}
    (path,) = httpx.post(f"{served.address}gradio_api/upload", files=files, trust_env=False).json()
    assert Path(path).is_relative_to(os.environ["GRADIO_TEMP_DIR"])
    pixel = "data:image/png;base64,iVBORw0KGgo="
    for image in (file_data(path), file_data(path, url=pixel), file_data(path, url="https://example.invalid/a.png")):
        answer = post(served, image)
        assert "4 responses" in answer and "boxed" in answer, "the upload counts, whatever else is said of it"


def test_uploads_are_gone_with_the_page(queue: QuestionQueue, picture: Path) -> None:
    files = {"files": ("a.png", picture.read_bytes(), "image/png")}
    with running(queue) as (address, _):
        (path,) = httpx.post(f"{address}gradio_api/upload", files=files, trust_env=False).json()
        assert Path(path).is_file()
    assert not Path(path).exists()


def test_only_this_machine_is_listened_on_unless_meant(caplog: pytest.LogCaptureFixture) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        check_host(host, False)
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org", ""):
        with pytest.raises(ConfigError, match="--open-to-network"):
            check_host(host, False)
    assert not caplog.records
    check_host("0.0.0.0", True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_port_that_is_taken_is_named(queue: QuestionQueue, served: Served) -> None:
    port = int(served.address.rstrip("/").rpartition(":")[2])
    why = f"--host 127.0.0.1 --port {port}: nothing can listen there"
    with pytest.raises(ConfigError, match=why), running(queue, port=port):
        pass


def test_the_other_loopback_address_is_served_too(queue: QuestionQueue) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 on this machine")
    with running(queue, "::1") as (address, _):
        assert httpx.get(address, trust_env=False).status_code == 200


def test_without_gradio_the_extra_to_install_is_named(queue: QuestionQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"mm-spine\[demo\]"), running(queue):
        pass


# The queue


def fields(picture: Path, **more: Any) -> PageFields:
    return PageFields((Upload(picture.name, picture.read_bytes()),), WORDS, **{"votes": 8, **more})


def test_responses_arrive_in_rounds(queue: QuestionQueue, picture: Path) -> None:
    states = list(queue.answer(fields(picture)))
    counts = [len(state.result.outcome.responses) for state in states if state.result]
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 8] and states[-1].stage.startswith("8 responses, ")
    assert "3 of 8 responses" in page_of(states[3])


def test_an_adapted_answer_stands_beside_the_one_before(queue: QuestionQueue, picture: Path) -> None:
    start = queue.policy.weights()
    *early, last = queue.answer(fields(picture, steps=2))
    assert last.result is not None and last.result.after is not None and not last.problem
    assert [state.stage for state in early if "step " in state.stage] == [f"Adapting: step {k} of 2 …" for k in (1, 2)]
    assert "Before" in page_of(last) and "After 2 steps" in page_of(last)
    assert all(torch.equal(start[name], value) for name, value in queue.policy.weights().items())


@pytest.mark.parametrize("steps", [0, 3])
def test_a_page_that_is_left_stops_the_work_and_frees_the_desk(queue: QuestionQueue, picture: Path, steps: int) -> None:
    start = queue.policy.weights()
    with closing(queue.answer(fields(picture, steps=steps))) as states:
        while (stage := next(states).stage) and "1 of 8" not in stage:
            pass
    *_, last = queue.answer(fields(picture, votes=2))
    assert last.result is not None and not last.problem, "the next question finds the queue free"
    assert all(torch.equal(start[name], value) for name, value in queue.policy.weights().items())


def test_one_question_is_answered_at_a_time(
    queue: QuestionQueue, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most, ask = [0], [0], question_queue.ask

    def counted(*args: Any, **named: Any) -> Iterator[AskResult]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        yield from ask(*args, **named)
        inside[0] -= 1

    monkeypatch.setattr(question_queue, "ask", counted)
    threads = [threading.Thread(target=list, args=(queue.answer(fields(picture)),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and inside == [0]


def test_one_question_too_many_is_told_to_come_again(queue: QuestionQueue, picture: Path) -> None:
    start = [queue.answer(fields(picture)) for _ in range(question_queue.MAX_OPEN)]
    try:
        first = [next(states).stage for states in start]
        assert first[0] == "Reading the image …" and all(stage.startswith("Waiting") for stage in first[1:])
        (refused,) = queue.answer(fields(picture))
        assert refused.problem.endswith("ask again later.")
    finally:
        for states in start:
            states.close()  # type: ignore[attr-defined]
    *_, last = queue.answer(fields(picture, votes=2))
    assert last.result is not None and not last.problem


def test_the_end_of_the_server_ends_its_work(queue: QuestionQueue, picture: Path) -> None:
    states = queue.answer(fields(picture, votes=64, steps=32))
    next(state for state in states if "of 64" in state.stage)
    queue.stop_all()
    *_, last = states
    assert last.stage == "Stopped." and not last.done


def test_a_page_stops_its_own_question_and_no_other(queue: QuestionQueue, picture: Path) -> None:
    first, second = (queue.answer(fields(picture, votes=2), page) for page in ("one", "two"))
    next(first), next(second)
    queue.stop("two")
    assert [state.stage for state in second] == ["Stopped."], "at once, though its turn has not come"
    *_, last = first
    assert last.done and last.result is not None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"votes": 65}, "votes=65: from 2 to 64"),
        ({"steps": -1}, "steps=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"kind": "nothing"}, "unknown answer kind"),
        ({"choices": ("x" * question_queue.MAX_CHARACTERS,)}, "too long"),
        ({"kind": "choice"}, "No response could be read"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_in_words(
    queue: QuestionQueue, picture: Path, change: dict[str, Any], expected: str
) -> None:
    *_, last = queue.answer(fields(picture, **change))
    assert expected in last.problem and "Traceback" not in last.problem


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "cut off"])
def test_a_bad_upload_is_a_problem_in_words(queue: QuestionQueue, data: bytes) -> None:
    *_, last = queue.answer(PageFields((Upload("scan.png", data),), WORDS))
    assert last.problem.startswith("cannot read image scan.png: ")


def test_several_images_are_asked_about_together_up_to_a_limit(queue: QuestionQueue, picture: Path) -> None:
    data = picture.read_bytes()
    uploads = tuple(Upload(f"{k}.png", data) for k in range(question_queue.MAX_IMAGES + 1))
    *_, last = queue.answer(PageFields(uploads[:2], WORDS, votes=2))
    assert last.asked is not None and last.asked.names == ("0.png", "1.png") and len(last.asked.question.images) == 2
    assert last.done and not any(upload.data for upload in uploads[:2]), "their bytes are gone after the answer"
    *_, last = queue.answer(PageFields(uploads, WORDS, votes=2))
    assert "9 images are too many: at most 8" in last.problem


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({}, "integer", "a whole number"),
        ({"words": "Is the sum greater than 10?"}, "yes_no", "yes or no"),
        ({"kind": "text"}, "text", "as chosen"),
        ({"choices": ("10", "11")}, "choice", "one of the choices"),
    ],
)
def test_the_page_says_how_the_answer_is_read(
    queue: QuestionQueue, picture: Path, more: dict[str, Any], kind: str, words: str
) -> None:
    asked = {"words": WORDS, "votes": 2, **more}
    *_, last = queue.answer(PageFields((Upload("a.png", picture.read_bytes()),), **asked))
    assert last.asked is not None and last.asked.question.spec.kind == kind
    assert words in page_of(last) and f'<span class="chip">{kind}</span>' in page_of(last)


def test_uploads_are_not_kept_in_memory(queue: QuestionQueue, picture: Path) -> None:
    before = dict(queue.policy._prompts)
    list(queue.answer(fields(picture)))
    assert queue.policy._prompts == before and not queue.policy.skipped


def test_an_unforeseen_error_says_nothing_of_this_machine(
    queue: QuestionQueue, picture: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **named: Any) -> Iterator[AskResult]:
        raise RuntimeError("/elsewhere/secret")

    monkeypatch.setattr(question_queue, "ask", fail)
    *_, last = queue.answer(fields(picture))
    assert "secret" not in last.problem and "log" in last.problem and "/elsewhere/secret" in caplog.text
