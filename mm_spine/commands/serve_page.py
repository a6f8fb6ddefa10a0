"""The web page of `mm-spine serve`, on gradio.

Nothing that a request says is trusted: the server opens no file but the page's own uploads and fetches no address.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

from mm_spine.commands.ask_session import AskOptions, ask_settings
from mm_spine.commands.page_example import example_for
from mm_spine.commands.page_guard import PageGuard
from mm_spine.commands.page_html import header_of, page_of, preview_of, resource
from mm_spine.commands.question_queue import (
    MAX_CHARACTERS,
    MAX_IMAGES,
    MAX_OPEN,
    STEPS,
    TEMPERATURE,
    VOTES,
    PageFields,
    PageState,
    QuestionQueue,
    Upload,
)
from mm_spine.compat import environment, install_command
from mm_spine.config import ConfigError
from mm_spine.processors.answers import known_kinds

log = logging.getLogger(__name__)

LABEL = "Images: upload or paste"
"""The label of the field of files."""

UNSET = "by the question"
"""The entry of the page's list of kinds that leaves the kind to `ask_session.kind_for`."""

END_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that end the server. It then deletes the uploads."""


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
        "css": resource("answer.css"),
        "head": f"<script>{resource('ask.js')}</script>",
    }


def _app(queue: QuestionQueue, uploads: Path) -> Any:
    """Build the page: fields on the left, the answer on the right; on a phone one below the other."""
    gr, settings = _gradio(), ask_settings(queue.options)
    example = example_for(settings)
    with gr.Blocks(title="mm-spine: ask about an image", analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.HTML(header_of(queue.policy, settings))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                images = _only_uploads(gr, uploads)
                preview = gr.HTML(elem_id="preview")
                words = gr.Textbox(
                    label="Question", lines=2, max_length=MAX_CHARACTERS, placeholder="Is there a fracture?"
                )
                with gr.Row():
                    button = gr.Button("Ask", variant="primary", scale=2, min_width=100, elem_id="ask")
                    stop = gr.Button("Stop", scale=1, min_width=80)
                    try_it = gr.Button("Example", scale=1, min_width=80)
                options = _options(gr, queue.options)
            with gr.Column(scale=3, min_width=300):
                shown = gr.HTML(page_of(PageState(0, "The answer will stand here.")), elem_id="answer")

        # gradio passes the request because of the parameter's type, which it reads from `__annotations__`.
        def on_ask(request: Any, *values: Any) -> Iterator[str]:
            yield from map(page_of, queue.answer(_fields(*values), request.session_hash))

        def on_stop(request: Any) -> None:
            queue.stop(request.session_hash)

        for function in (on_ask, on_stop):
            function.__annotations__["request"] = gr.Request

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        # gradio may start any number of events at once: our own queue orders them and says so on pages that wait.
        event = {"concurrency_limit": None, "concurrency_id": "answer", **quiet}
        inputs = [images, words, *options]
        for trigger in (button.click, words.submit):
            trigger(on_ask, inputs, shown, **event)
        stop.click(on_stop, None, None, **quiet)
        # Decoding takes memory: one page at a time.
        images.change(preview_of, [images], preview, concurrency_limit=1, concurrency_id="preview", **quiet)
        try_it.click(lambda: ([str(example.saved(uploads))], example.words), None, [images, words], **quiet)
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
        about = "On this question only, undone afterwards. Trains agreement with the vote, which need not be right."
        steps = gr.Slider(*STEPS, value=0, step=1, label="Adapt first, steps", info=about)
    return [kind, choices, votes, temperature, steps]


def _fields(
    images: tuple[Upload, ...], words: str, kind: str, choices: str, votes: float, temperature: float, steps: float
) -> PageFields:
    """Read the values that gradio passes for the fields, in the order of the inputs."""
    options = tuple(line.strip() for line in (choices or "").splitlines() if line.strip())
    named = None if kind == UNSET else kind
    return PageFields(images, words or "", named, options, int(votes), float(temperature), int(steps))


def _only_uploads(gr: Any, uploads: Path) -> Any:
    """Build gradio's field of files so that it gives uploads with their bytes, fetches no address and opens no other
    path.

    Files of any name are taken, since DICOM files often have no ending; what they are is seen when they are decoded.
    """
    # Methods are replaced on the object, because gradio writes a stub file beside the module of every subclass.
    field = gr.File(file_count="multiple", label=LABEL, height=150, elem_id="images", buttons=[])

    async def stay(path: str | Path | None) -> str | None:
        return None if path is None else str(_inside(uploads, path))

    def read(payload: Any) -> tuple[Upload, ...]:
        paths = [_inside(uploads, file.path) for file in islice(payload or (), MAX_IMAGES + 1)]
        return tuple(Upload(path.name, path.read_bytes()) for path in paths)

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
