"""A page in headless Chromium, with what it asked the network for and what it complained of."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOCAL = {"127.0.0.1", "localhost", "::1", None}
HEIGHT = 900


@dataclass
class Opened:
    """A page and its record: `requests` are addresses in order, `errors` those of the console and of its code."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def outside(self) -> list[str]:
        """The requests that went beyond this machine; data:, blob: and file: stay in it."""
        return [address for address in self.requests if urlsplit(address).hostname not in LOCAL]

    def fetched(self) -> list[str]:
        """The requests that used the network at all, this machine's own included."""
        return [address for address in self.requests if urlsplit(address).scheme in ("http", "https", "ws", "wss")]

    def too_wide(self) -> int:
        """Pixels by which the page is wider than its window; 0 where nothing has to be scrolled sideways."""
        wide: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return wide


@contextmanager
def open_page(place: str | Path, width: int = 1280, dark: bool = False) -> Iterator[Opened]:
    """`place`, an address or a file, in a Chromium with a new empty profile; the test is skipped where there is none.

    `opened.page` is playwright's: `.locator`, `.screenshot(path=..., full_page=True)`, `.set_input_files`.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = CHROMIUM if Path(CHROMIUM).is_file() else shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    address = place if isinstance(place, str) and "://" in place else Path(place).resolve().as_uri()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=chromium,
            args=list(FLAGS),
            viewport={"width": width, "height": HEIGHT},
            color_scheme="dark" if dark else "light",
        )
        try:
            opened = _watched(context.pages[0] if context.pages else context.new_page())
            opened.page.goto(address)
            yield opened
        finally:
            context.close()


def _watched(page: Any) -> Opened:
    """Notes requests, web sockets, errors on the console and exceptions of the page's code from now on."""
    opened = Opened(page)
    page.on("request", lambda request: opened.requests.append(request.url))
    page.on("websocket", lambda socket: opened.requests.append(socket.url))
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("console", lambda line: opened.errors.append(line.text) if line.type == "error" else None)
    return opened
