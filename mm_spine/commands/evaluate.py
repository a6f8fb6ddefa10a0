"""`mm-spine evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mm_spine.commands import printing
from mm_spine.commands.options import Overrides, Plugins, Seed


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder or hub id.")],
    benchmark: Annotated[str, typer.Argument(help="A benchmark, or a folder of your own.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Also write a line per question, and the answers to a .csv beside it."),
    ] = None,
    seed: Seed = None,
    plugin: Plugins = None,
) -> None:
    """Greedy, pass@1, maj@N and pass@k of a model, and how its answers vary, on the adapted split or `split=NAME`."""
    from mm_spine.reporting.pass_at_k import at_shown_k
    from mm_spine.runs.evaluate import evaluate_model
    from mm_spine.runs.listeners.live import watching
    from mm_spine.runs.plan import load_config

    # Quoted as JSON: YAML would read a folder named 007 as a number.
    path = f"model.path={json.dumps(model)}"
    config = load_config(benchmark, [*(overrides or ()), path], "none", seed)
    printing.print_own_values(config, benchmark, [*(overrides or ()), path], ("model", "evaluation"))
    with watching() as listener:
        figures = evaluate_model(config, output, listener)
    skipped, bad_rows, breakdowns = (figures.pop(name) for name in ("skipped", "bad_rows", "breakdown"))
    curve = figures.pop("pass_at_k") or []
    figures |= {f"pass_at_k, k = {k}": share for k, share in at_shown_k(curve).items()}
    printing.print_mapping(f"{model} on {benchmark}", figures)
    for tag, rows in breakdowns.items():
        printing.print_breakdown(tag, rows)
    printing.print_losses(skipped.values(), bad_rows)
