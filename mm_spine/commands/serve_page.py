"""The web page of `mm-spine serve`, on gradio.

Nothing that a request says is trusted: the server opens no file but the page's own uploads and fetches no address.
A model's text is shown as text.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from threading import Event
from typing import Any

from jinja2 import Environment

from mm_spine.commands.ask_session import AskOptions, ask_settings
from mm_spine.commands.page_guard import PageGuard
from mm_spine.commands.question_queue import (
    MAX_CHARACTERS,
    MAX_OPEN,
    STEPS,
    TEMPERATURE,
    VOTES,
    PageFields,
    PageState,
    QuestionQueue,
)
from mm_spine.compat import environment, install_command
from mm_spine.config import ConfigError
from mm_spine.processors.answers import known_kinds
from mm_spine.reporting.entropy_colours import MARKS, Token, choices, shade

log = logging.getLogger(__name__)

UNSET = "by the question"
"""The entry of the page's list of kinds that leaves the kind to `ask_session.kind_for`."""

END_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that end the server. It then deletes the uploads."""

INTRODUCTION = "Several answers are sampled and put to a vote. Everything stays on the machine that serves this page."


def page_of(state: PageState) -> str:
    """Render the state as HTML, with all text escaped."""
    html: str = _template().render(
        votes=state.votes, stage=state.stage, result=state.result, problem=state.problem, marks=MARKS
    )
    # gradio's HTML component would evaluate these characters as a template of its own.
    return html.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


def _tip(token: Token) -> str:
    fork = " · fork" if token.fork else ""
    return f"{token.entropy:.2f} nats ≈ {choices(token.entropy):.1f} equal choices{fork}"


@cache
def _template() -> Any:
    templates = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"shade": shade, "tip": _tip}
    return templates.from_string(_resource("answer.j2"))


def _resource(name: str) -> str:
    return (resources.files("mm_spine.reporting") / name).read_text(encoding="utf-8")


def check_host(host: str, open_to_network: bool) -> None:
    """Raise ConfigError for an address that others can reach; with `open_to_network` log a warning instead."""
    if _is_loopback(host):
        return
    if not open_to_network:
        raise ConfigError(
            f"--host {host}: others could use this page, which asks for no password; to allow it add --open-to-network"
        )
    log.warning("--host %s: everyone who reaches this address can ask, and sees no one else's images", host)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(queue: QuestionQueue, host: str, port: int, max_upload_mb: int, max_total_mb: int) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigError if gradio is not installed or nothing can listen there."""
    ended = Event()
    previous = {number: signal.signal(number, lambda *_: ended.set()) for number in END_SIGNALS}
    try:
        with running(queue, host, port, max_upload_mb, max_total_mb) as (address, _):
            log.info("open %s (Ctrl-C ends it)", address)
            ended.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def running(
    queue: QuestionQueue,
    host: str = "127.0.0.1",
    port: int = 0,
    max_upload_mb: int = 20,
    max_total_mb: int = 500,
) -> Iterator[tuple[str, Any]]:
    """Run the page during the block, which gets its address and gradio's app.

    Uploads are kept in a temporary folder of their own, deleted at the end.
    """
    with (
        tempfile.TemporaryDirectory(prefix="mm-spine-uploads-", ignore_cleanup_errors=True) as uploads,
        environment({"GRADIO_TEMP_DIR": uploads}),
    ):
        app = None
        try:
            app = _app(queue, Path(uploads))
            guard = {"host": host, "uploads": Path(uploads), "total_bytes": max_total_mb * 2**20}
            yield _started(app, host, port, max_upload_mb, guard), app
        finally:
            queue.stop_all()
            if app is not None:
                app.close(verbose=False)


def _started(app: Any, host: str, port: int, max_upload_mb: int, guard: Mapping[str, Any]) -> str:
    # gradio builds an address from the name, in which IPv6 needs brackets.
    name = f"[{host}]" if ":" in host else host
    try:
        _, address, _ = app.launch(server_name=name, server_port=port or None, **_launch(max_upload_mb, guard))
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: nothing can listen there; the port is taken, or the address is not "
            "this machine's: choose another (--port 0: the first free one)"
        ) from error
    return str(address)


def _launch(max_upload_mb: int, guard: Mapping[str, Any]) -> Mapping[str, Any]:
    gradio = _gradio()
    from starlette.middleware import Middleware

    return {
        "share": False,
        "app_kwargs": {"middleware": [Middleware(PageGuard, **guard)]},
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


def _app(queue: QuestionQueue, uploads: Path) -> Any:
    """Build the page: fields on the left, the answer on the right; on a phone one below the other."""
    gr = _gradio()
    with gr.Blocks(title="mm-spine: ask about an image", analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.Markdown(f"## Ask about an image\n{INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = _only_uploads(gr, uploads)
                words = gr.Textbox(
                    label="Question", lines=2, max_length=MAX_CHARACTERS, placeholder="Is there a fracture?"
                )
                with gr.Row():
                    button = gr.Button("Ask", variant="primary", scale=3, min_width=120)
                    stop = gr.Button("Stop", scale=1, min_width=80)
                options = _options(gr, queue.options)
            with gr.Column(scale=3, min_width=320):
                shown = gr.HTML(page_of(PageState(0, "The answer will stand here.")), elem_id="answer")

        def on_ask(*values: Any) -> Iterator[str]:
            yield from map(page_of, queue.answer(_fields(*values)))

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        # gradio may start any number of events at once: our own queue orders them and says so on pages that wait.
        event = {"concurrency_limit": None, "concurrency_id": "answer", **quiet}
        inputs = [image, words, *options]
        asking = [trigger(on_ask, inputs, shown, **event) for trigger in (button.click, words.submit)]
        stop.click(lambda: page_of(PageState(0, "Stopped.")), None, shown, cancels=asking, **quiet)
    return app.queue(max_size=2 * MAX_OPEN)


def _options(gr: Any, defaults: AskOptions) -> list[Any]:
    """Build the fields that are folded away: kind, choices, votes, temperature, steps."""
    with gr.Accordion("Options", open=False):
        kinds, chosen = [UNSET, *known_kinds()], defaults.kind or UNSET
        kind = gr.Dropdown(kinds, value=chosen, label="Kind of answer", info="Decides which answers are the same.")
        choices = gr.Textbox(label="Choices, one a line", lines=3, max_length=MAX_CHARACTERS)
        votes = gr.Slider(*VOTES, value=16, step=1, label="Votes")
        start = ask_settings(defaults).config.sampling.temperature
        temperature = gr.Slider(*TEMPERATURE, value=start, step=0.05, label="Temperature")
        about = "On this question only, undone afterwards. Makes answers surer, not always right."
        steps = gr.Slider(*STEPS, value=0, step=1, label="Adapt first, steps", info=about)
    return [kind, choices, votes, temperature, steps]


def _fields(
    image: bytes | None, words: str, kind: str, choices: str, votes: float, temperature: float, steps: float
) -> PageFields:
    """Read the values that gradio passes for the fields, in the order of the inputs."""
    options = tuple(line.strip() for line in (choices or "").splitlines() if line.strip())
    named = None if kind == UNSET else kind
    return PageFields(image, words or "", named, options, int(votes), float(temperature), int(steps))


def _only_uploads(gr: Any, uploads: Path) -> Any:
    """Build gradio's image field so that it gives an upload's bytes, fetches no address and opens no other path."""
    # Methods are replaced on the object, because gradio writes a stub file beside the module of every subclass.
    field = gr.Image(sources=["upload", "clipboard"], label="Image", height=260, buttons=[])

    async def stay(path: str | Path | None) -> str | None:
        return None if path is None else str(_inside(uploads, path))

    def read(payload: Any) -> bytes | None:
        return None if payload is None else _inside(uploads, payload.path).read_bytes()

    vars(field).update(async_move_resource_to_block_cache=stay, preprocess=read)
    return field


def _inside(uploads: Path, path: str | Path | None) -> Path:
    """Return the real path of an upload. Raises ValueError for anything else, addresses included."""
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
