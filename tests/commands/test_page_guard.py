"""What the page's server refuses: other hosts, other origins, too many uploads; and what it leaves behind: nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mm_spine.commands import ask_session
from mm_spine.commands.ask_session import AskOptions, ask_settings
from mm_spine.commands.question_queue import QuestionQueue
from mm_spine.commands.serve_page import running

pytest.importorskip("gradio", reason='no gradio: pip install -c constraints.txt "mm-spine[demo]"')

FILE = {"files": ("a.png", b"\x89PNG" + bytes(200_000), "image/png")}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A page that keeps one megabyte of uploads."""
    queue = QuestionQueue(ask_session.load(ask_settings(AskOptions())))
    with running(queue, max_total_mb=1) as (address, _):
        yield address


def get(address: str, **headers: str) -> int:
    return httpx.get(address, headers=headers, trust_env=False).status_code


def upload(address: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{address}gradio_api/upload", files=FILE, headers=headers, trust_env=False)


def test_only_names_of_this_machine_are_answered(address: str) -> None:
    port = address.rstrip("/").rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "127.0.0.1"):
        assert get(address, host=host) == 200, host
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "localhost.evil.example"):
        assert get(address, host=host) == 403, host
        assert get(f"{address}config", host=host) == 403, host


def test_an_upload_from_another_origin_is_refused(address: str) -> None:
    own = address.rstrip("/")
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", f"{own}.evil.example"):
        assert upload(address, origin=origin).status_code == 403, origin
    assert upload(address, origin=own).status_code == 200


def test_every_way_in_wants_the_own_origin(address: str) -> None:
    for path in ("", "config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
        assert get(f"{address}{path}", origin="https://evil.example") == 403, path
    joined: dict[str, Any] = {"data": [], "fn_index": 0, "session_hash": "x"}
    answer = httpx.post(
        f"{address}gradio_api/queue/join", json=joined, headers={"origin": "http://evil.example"}, trust_env=False
    )
    assert answer.status_code == 403


def test_all_uploads_together_have_a_limit(address: str) -> None:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    codes = []
    for k in range(8):
        files = {"files": (f"{k}.png", bytes([k]) * 200_000, "image/png")}
        codes.append(httpx.post(f"{address}gradio_api/upload", files=files, trust_env=False).status_code)
    assert set(codes) == {200, 413} and codes == sorted(codes)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 2**20

    def endless() -> Iterator[bytes]:
        yield b"x" * 1000

    answer = httpx.post(f"{address}gradio_api/upload", content=endless(), trust_env=False)
    assert answer.status_code == 411


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_uploads(number: signal.Signals, tmp_path: Path) -> None:
    """The shell's way to end a server, which runs no clean-up by itself."""
    log = tmp_path / "log"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with log.open("wb") as file:
        command = [sys.executable, "-m", "mm_spine.cli", "serve", "--port", "0"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"open (http\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert upload(found[1]).status_code == 200
        assert any(path.is_file() for path in tmp_path.glob("mm-spine-uploads-*/**/*"))
        process.send_signal(number)
        assert process.wait(60) == 0, log.read_text()
        assert not list(tmp_path.glob("mm-spine-uploads-*"))
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait(30)
