"""Arguments and options that several commands share: types for their parameters, with the help text of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _load_plugins(files: list[Path] | None) -> list[Path] | None:
    # Typer calls this while it reads the command line, so before the command looks anything up by name.
    from mm_spine.config.plugins import load_all

    load_all(files)
    return files


Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        callback=_load_plugins,
        help="A file of your own that adds methods, answer kinds or benchmarks; may be repeated.",
    ),
]
"""For every command that looks up a method, an answer kind or a benchmark. Its body needs no line for it."""

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="e.g. optim.lr=1e-5")]
Seed = Annotated[int | None, typer.Option(help="Seeds every draw; 0 unless the configuration says otherwise.")]

# Of a benchmark's rows: grade, vote, benchmarks show
SourceOption = Annotated[str | None, typer.Option(help="Where to read the benchmark: a folder or another hub id.")]
SplitOption = Annotated[str | None, typer.Option(help="The benchmark's split; by default the one adapted to.")]

# Of a file of saved rows: grade, vote
SavedRows = Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object per line.")]
KindOption = Annotated[str | None, typer.Option(help="The answer kind of rows that have no `kind` of their own.")]
BenchmarkOption = Annotated[
    str | None, typer.Option(help="A benchmark or a folder: gives the kind, and by id the fields that a row lacks.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one line of JSON at the end.")]

# Of a question asked: ask, serve
ModelOption = Annotated[str | None, typer.Option(help="A model folder or hub id; by default the embedded model.")]
AskedAs = Annotated[
    str | None,
    typer.Option(
        "--benchmark", help="Ask as this benchmark does: with its answer kind, prompt, decoding and optimiser."
    ),
]
AskedKind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        help="The answer kind. By default `choice` with choices, `yes_no` if the question's words ask for it, "
        "else the benchmark's, else `text`.",
    ),
]
AskedMethod = Annotated[str, typer.Option("--method", help="How it adapts, and which tokens count as forking tokens.")]
AskedSeed = Annotated[int, typer.Option("--seed", help="Seeds every draw.")]
