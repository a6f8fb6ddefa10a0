"""`mm-spine serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from mm_spine.commands.options import AskedAs, AskedKind, AskedMethod, AskedSeed, ModelOption, Overrides, Plugins

LOCAL = "127.0.0.1"


def serve(
    model: ModelOption = None,
    benchmark: AskedAs = None,
    overrides: Overrides = None,
    kind: AskedKind = None,
    method: AskedMethod = "spine",
    seed: AskedSeed = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs --open-to-network.")
    ] = LOCAL,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: the first free one from 7860 on.")] = 7860,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest file that may be uploaded.")] = 20,
    max_total_mb: Annotated[int, typer.Option(min=1, help="Largest total of all uploads that are kept.")] = 500,
    open_to_network: Annotated[bool, typer.Option(help="Allow a --host that other machines can reach.")] = False,
    plugin: Plugins = None,
) -> None:
    """`ask` as a local web page: upload or paste an image, ask, and watch the vote."""
    from mm_spine.commands import ask_session, serve_page
    from mm_spine.commands.question_queue import QuestionQueue

    serve_page.check_host(host, open_to_network)
    options = ask_session.AskOptions(model, benchmark, kind, method=method, seed=seed, overrides=tuple(overrides or ()))
    policy = ask_session.load(ask_session.ask_settings(options))
    serve_page.serve(QuestionQueue(policy, options), host, port, max_upload_mb, max_total_mb)
