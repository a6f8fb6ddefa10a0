"""What the page's server refuses before gradio sees it: other hosts, other origins, and too many uploads.

A page of another site can send requests to this machine, and through DNS rebinding read the answers. Its requests
name that site in the headers `Origin` or `Host`, which no script of a page can change.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

UPLOAD = "/upload"
"""How the path of a request that uploads a file ends."""


class PageGuard:
    """ASGI middleware around the page's application.

    `host` is the address that the server listens at, `uploads` the folder of uploaded files, `total_bytes` what all
    files in it may have together.
    """

    def __init__(self, app: Application, host: str, uploads: Path, total_bytes: int) -> None:
        self._app, self._uploads, self._total = app, uploads, total_bytes
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}
        # Bytes of uploads that are being received and are not all in the folder yet.
        self._arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if why := self._foreign(headers):
            await _refuse(scope, send, 403, why)
            return
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith(UPLOAD):
            await self._upload(headers, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _foreign(self, headers: dict[str, str]) -> str:
        """Say why a request is not one of the page's own; "" if it may be."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return f"this page is not at {host[:100]!r}"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"{origin[:100]!r} is not this page"
        return ""

    def _is_own(self, host: str) -> bool:
        """Return whether a Host header names this server: by an address, or by a name that it has."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            # A name that is rebound to this machine is a name; an address cannot be rebound.
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True

    async def _upload(self, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """Let an upload through if its bytes fit beside those already there. The server holds it to its length."""
        length = headers.get("content-length", "")
        if not length.isdigit():
            await _refuse(scope, send, 411, "an upload must state its length")
            return
        size = int(length)
        there = sum(path.stat().st_size for path in self._uploads.rglob("*") if path.is_file())
        if there + self._arriving + size > self._total:
            await _refuse(scope, send, 413, "the uploads of all visitors have reached their limit; try again later")
            return
        self._arriving += size
        try:
            await self._app(scope, receive, send)
        finally:
            self._arriving -= size


async def _refuse(scope: Scope, send: Send, status: int, why: str) -> None:
    """End a request with a status and a sentence."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = why.encode("utf-8", "replace")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
