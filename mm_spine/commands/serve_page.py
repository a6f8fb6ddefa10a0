"""`mm-spine ask` as a local web page, on gradio.

What a page sends is not trusted: it names no file but its own uploads, and what a model wrote is shown as text.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from jinja2 import Environment

from mm_spine.commands.ask_session import Asked, Manner, ask, manner, question_of
from mm_spine.compat import install_command
from mm_spine.config import ConfigError, RunStopped
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import known_kinds
from mm_spine.reporting.entropy_colours import MARKS, Token, choices, shade
from mm_spine.types import StepReport

log = logging.getLogger(__name__)

WORDS = 4000
"""Characters of a question, and of its choices together."""

ROUNDS = 8
"""In how many parts the responses arrive."""

WAITING = 8
"""Questions that may be open at once, the one being answered included; further ones are told to come again."""

VOTES, STEPS, TEMPERATURE = (2, 64), (0, 32), (0.05, 2.0)
"""What a page may ask for, from and to."""

UNSET = "by the question"
INTRODUCTION = "Several answers are sampled and put to a vote. Everything stays on the machine that serves this page."


@dataclass(frozen=True)
class Settings:
    """How every question of this server is asked, where the page says nothing else; see `asking.manner`."""

    model: str | None = None
    benchmark: str | None = None
    kind: str | None = None
    method: str = "spine"
    seed: int = 0
    overrides: tuple[str, ...] = ()

    def manner(self, votes: int = 16, steps: int = 0, more: tuple[str, ...] = ()) -> Manner:
        """For one question. Raises as `asking.manner`."""
        return manner(
            self.model,
            self.benchmark,
            votes=votes,
            steps=steps,
            method=self.method,
            seed=self.seed,
            overrides=(*self.overrides, *more),
        )


@dataclass(frozen=True)
class Wanted:
    """One question as the page's fields have it. `image` are the bytes of the uploaded file."""

    image: bytes | None
    words: str
    kind: str | None = None
    choices: tuple[str, ...] = ()
    votes: int = 16
    temperature: float = 1.0
    steps: int = 0


@dataclass(frozen=True)
class View:
    """What the page shows now: how far it is, what is known, what went wrong; `votes` are those planned."""

    votes: int
    stage: str = ""
    asked: Asked | None = None
    problem: str = ""


class _Upload:
    """The bytes of an upload while its question is answered: a policy keeps the questions that it was asked."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __str__(self) -> str:
        return "you gave"

    def read_bytes(self) -> bytes:
        return self.data


class _Left(Exception):
    """Whoever asked is no longer there."""


@dataclass
class Desk:
    """Answers one question at a time, in a thread of its own, with weights that every question finds unchanged."""

    policy: Policy
    settings: Settings = Settings()
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "answering"), repr=False)
    _open: set[Event] = field(default_factory=set, repr=False)

    def answer(self, wanted: Wanted) -> Iterator[View]:
        """Views as responses arrive, the last one complete, or with the problem that ended it; first of all, that it
        waits, if it does. Closing it stops the work at the next round or step."""
        if len(self._open) >= WAITING:
            yield View(wanted.votes, problem=f"{len(self._open)} questions are being asked already; ask again later.")
            return
        news: SimpleQueue[View | None] = SimpleQueue()
        left, waits = Event(), bool(self._open)
        self._open.add(left)
        try:
            self._worker.submit(self._work, wanted, news.put, left)
            if waits:
                yield View(wanted.votes, "Waiting: another question is being answered …")
            while (view := news.get()) is not None:
                yield view
        finally:
            left.set()
            self._open.discard(left)

    def leave(self) -> None:
        """Stop the work on all open questions at their next round or step."""
        for left in tuple(self._open):
            left.set()

    def _work(self, wanted: Wanted, tell: Callable[[View | None], None], left: Event) -> None:
        try:
            self._answer(wanted, tell, left)
        except _Left:
            log.info("the page was left before its answer")
        except (ValueError, RunStopped) as error:
            tell(View(wanted.votes, problem=str(error)))
        except Exception:
            log.exception("a question failed")
            tell(View(wanted.votes, problem="Something went wrong here; the server's log says what."))
        finally:
            tell(None)

    def _answer(self, wanted: Wanted, tell: Callable[[View | None], None], left: Event) -> None:
        if left.is_set():
            raise _Left
        _check(wanted)
        upload = _Upload(wanted.image or b"")
        how = self.settings.manner(wanted.votes, wanted.steps, (f"sampling.temperature={wanted.temperature}",))
        question = question_of(wanted.words, [upload], how, wanted.kind or self.settings.kind, wanted.choices)
        tell(View(wanted.votes, "Reading the image …"))
        asked: Asked | None = None

        def on_step(report: StepReport) -> None:
            if left.is_set():
                raise _Left
            tell(View(wanted.votes, f"Adapting: step {report.step + 1} of {wanted.steps} …", asked))

        try:
            with closing(ask(self.policy, question, how, -(-wanted.votes // ROUNDS), on_step)) as outcomes:
                for asked in outcomes:
                    if left.is_set():
                        raise _Left
                    tell(View(wanted.votes, _stage(asked, wanted), asked))
        finally:
            upload.data = b""
            self.policy.forget(question)
        tell(_ended(asked, wanted))


def _check(wanted: Wanted) -> None:
    """Raise ValueError for what a page of ours would not send, or an image that is not there yet."""
    if wanted.image is None:
        raise ValueError("There is no image yet: upload one, or paste it.")
    if len(wanted.words) + sum(map(len, wanted.choices)) > WORDS:
        raise ValueError(f"The question is too long: at most {WORDS:,} characters, its choices included.")
    limits = {"votes": VOTES, "steps": STEPS, "temperature": TEMPERATURE}
    for name, (least, most) in limits.items():
        if not least <= getattr(wanted, name) <= most:
            raise ValueError(f"{name}={getattr(wanted, name)}: from {least} to {most}.")


def _stage(asked: Asked, wanted: Wanted) -> str:
    done = len(asked.outcome.responses)
    again = " after adaptation" if asked.after else ""
    if done < wanted.votes:
        return f"{done} of {wanted.votes} responses{again} …"
    return "" if asked.after or not wanted.steps else f"Adapting: {wanted.steps} steps …"


def _ended(asked: Asked | None, wanted: Wanted) -> View:
    if asked is None or asked.outcome.vote.answer is None:
        why = "No response could be read as an answer. Try another kind of answer; all responses are below."
        return View(wanted.votes, asked=asked, problem=why)
    outcomes = [outcome for outcome in (asked.before, asked.after) if outcome]
    n, tokens = sum(len(o.responses) for o in outcomes), sum(o.tokens for o in outcomes)
    seconds = sum(o.seconds for o in outcomes) + asked.seconds
    return View(wanted.votes, f"{n} responses, {tokens:,} tokens, {seconds:.1f} s.", asked)


def page_of(view: View) -> str:
    """The view as HTML, all text in it escaped, for gradio's templates too."""
    html: str = _template().render(
        votes=view.votes, stage=view.stage, asked=view.asked, problem=view.problem, marks=MARKS
    )
    return html.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


def _tip(token: Token) -> str:
    fork = " · fork" if token.fork else ""
    return f"{token.entropy:.2f} nats ≈ {choices(token.entropy):.1f} equal choices{fork}"


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shade": shade, "tip": _tip}
    return environment.from_string(_resource("answer.j2"))


def _resource(name: str) -> str:
    return (resources.files("mm_spine.reporting") / name).read_text(encoding="utf-8")


def check_host(host: str, open_to_network: bool) -> None:
    """Raise ConfigError for an address beyond this machine, unless that is meant; then a warning is logged."""
    if _is_loopback(host):
        return
    if not open_to_network:
        raise ConfigError(
            f"--host {host}: others could use this page, which asks for no password; add --open-to-network to mean it"
        )
    log.warning("--host %s: everyone who reaches this address can ask, and sees no one else's images", host)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(desk: Desk, host: str, port: int, max_upload_mb: int) -> None:
    """Serve until interrupted. ConfigError: gradio is not installed, or nothing can listen there."""
    with running(desk, host, port, max_upload_mb) as (address, app):
        log.info("open %s (Ctrl-C ends it)", address)
        app.block_thread()


@contextmanager
def running(desk: Desk, host: str = "127.0.0.1", port: int = 0, max_upload_mb: int = 20) -> Iterator[tuple[str, Any]]:
    """The address of the running page, and gradio's app. Uploads lie in a folder of their own, deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="mm-spine-uploads-", ignore_cleanup_errors=True) as uploads:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = None
        try:
            app = _app(desk, Path(uploads))
            yield _started(app, host, port, max_upload_mb), app
        finally:
            desk.leave()
            if app is not None:
                app.close(verbose=False)
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def _started(app: Any, host: str, port: int, max_upload_mb: int) -> str:
    name = f"[{host}]" if ":" in host else host  # as gradio, which makes an address of it, wants IPv6
    try:
        _, address, _ = app.launch(server_name=name, server_port=port or None, **_launch(max_upload_mb))
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: nothing can listen there; the port is taken, or the address is none of this "
            "machine: choose another (--port 0: the first free one)"
        ) from error
    return str(address)


def _launch(max_upload_mb: int) -> Mapping[str, Any]:
    gradio = _gradio()
    return {
        "share": False,
        "prevent_thread_lock": True,
        "quiet": True,
        "footer_links": [],
        "run_history": False,
        "allowed_paths": [],
        "max_file_size": f"{max_upload_mb}mb",
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "theme": gradio.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        "css": _resource("answer.css"),
    }


def _app(desk: Desk, uploads: Path) -> Any:
    """The page: fields on the left, the answer on the right; on a phone one below the other."""
    gr = _gradio()
    with gr.Blocks(title="mm-spine: ask about an image", analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.Markdown(f"## Ask about an image\n{INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = _only_uploads(gr, uploads)
                words = gr.Textbox(label="Question", lines=2, max_length=WORDS, placeholder="Is there a fracture?")
                with gr.Row():
                    button = gr.Button("Ask", variant="primary", scale=3, min_width=120)
                    stop = gr.Button("Stop", scale=1, min_width=80)
                options = _options(gr, desk.settings)
            with gr.Column(scale=3, min_width=320):
                shown = gr.HTML(page_of(View(0, "The answer will stand here.")), elem_id="answer")

        def on_ask(*values: Any) -> Iterator[str]:
            yield from map(page_of, desk.answer(_wanted(*values)))

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        # All at once: the desk puts them in a row, and tells whoever waits.
        how = {"concurrency_limit": None, "concurrency_id": "answer", **quiet}
        asking = [trigger(on_ask, [image, words, *options], shown, **how) for trigger in (button.click, words.submit)]
        stop.click(lambda: page_of(View(0, "Stopped.")), None, shown, cancels=asking, **quiet)
    return app.queue(max_size=2 * WAITING)


def _options(gr: Any, settings: Settings) -> list[Any]:
    with gr.Accordion("Options", open=False):
        kinds, chosen = [UNSET, *known_kinds()], settings.kind or UNSET
        kind = gr.Dropdown(kinds, value=chosen, label="Kind of answer", info="Decides which answers are the same.")
        choices = gr.Textbox(label="Choices, one a line", lines=3, max_length=WORDS)
        votes = gr.Slider(*VOTES, value=16, step=1, label="Votes")
        start = settings.manner().config.sampling.temperature
        temperature = gr.Slider(*TEMPERATURE, value=start, step=0.05, label="Temperature")
        alone = "On this question alone, undone afterwards. Makes answers surer, not always right."
        steps = gr.Slider(*STEPS, value=0, step=1, label="Adapt first, steps", info=alone)
    return [kind, choices, votes, temperature, steps]


def _wanted(
    image: bytes | None, words: str, kind: str, choices: str, votes: float, temperature: float, steps: float
) -> Wanted:
    options = tuple(line.strip() for line in (choices or "").splitlines() if line.strip())
    named = None if kind == UNSET else kind
    return Wanted(image, words or "", named, options, int(votes), float(temperature), int(steps))


def _only_uploads(gr: Any, uploads: Path) -> Any:
    """gradio's image field, which gives the bytes of an upload and neither fetches an address nor opens another path.

    Its methods are replaced on the object: gradio writes a stub beside the module of every subclass.
    """
    field = gr.Image(sources=["upload", "clipboard"], label="Image", height=260, buttons=[])

    async def stay(path: str | Path | None) -> str | None:
        return None if path is None else str(_inside(uploads, path))

    def read(payload: Any) -> bytes | None:
        return None if payload is None else _inside(uploads, payload.path).read_bytes()

    vars(field).update(async_move_resource_to_block_cache=stay, preprocess=read)
    return field


def _inside(uploads: Path, path: str | Path | None) -> Path:
    """The real path of an upload. ValueError: anything else, an address among them."""
    found = Path(path or "").resolve()
    if not found.is_relative_to(uploads.resolve()) or not found.is_file():
        raise ValueError("that is no upload of this page")
    return found


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"mm-spine serve needs gradio: {install_command('demo')}") from error
    return gradio
