"""`mm-spine forecast`."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from mm_spine import files
from mm_spine.commands import printing
from mm_spine.commands.options import Overrides, Plugins, Seed
from mm_spine.config import ConfigError


def forecast(
    model: Annotated[str, typer.Argument(help="A model folder or hub id.")],
    benchmark: Annotated[str, typer.Argument(help="A benchmark, or a folder of your own.")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Keep the answers and the report in this folder.")] = None,
    labels: Annotated[
        int | None,
        typer.Option(min=1, help="Draw so many questions into OUTPUT/labels.csv; once filled in, call this again."),
    ] = None,
    seed: Seed = None,
    plugin: Plugins = None,
) -> None:
    """Say from one round of votes, without labels, whether adapting is worth trying; change no weight."""
    if output is None:
        if labels is not None:
            raise ConfigError(f"--labels={labels} needs --output: the sheet to fill in is kept there")
        with TemporaryDirectory(prefix="mm-spine-forecast-") as folder:
            _evaluate(model, benchmark, overrides, Path(folder) / "run", seed)
            _print_forecast(Path(folder) / "run")
        return
    _evaluate(model, benchmark, overrides, output, seed)
    _print_forecast(output)
    if labels is not None:
        _print_labels(output, labels)
    printing.print_written(output)


def _evaluate(model: str, benchmark: str, overrides: list[str] | None, output: Path, seed: int | None) -> None:
    """Evaluate the model on the questions to adapt to, as a run without steps in `output`.

    A finished run of the same configuration is left as it is. Raises ConfigError for one of another configuration.
    """
    from mm_spine.runs.listeners.live import watching
    from mm_spine.runs.plan import load_config
    from mm_spine.runs.run import run

    # Quoted as JSON: YAML would read a folder named 007 as a number.
    path = f"model.path={json.dumps(model)}"
    config = load_config(benchmark, ["evaluation.held_out=false", *(overrides or ()), path], "none", seed)
    if (output / "summary.json").is_file():
        if load_config(str(output / "config.yaml")) != config:
            raise ConfigError(f"{output}: holds a run of another configuration; name a new folder")
        return
    with watching() as listener:
        run(config, output, listener=listener)


def _print_forecast(run: Path) -> None:
    """Print the forecast of a finished run. Raises ConfigError where it has none."""
    found = files.read_json(run / "summary.json").get("forecast")
    if found is None:
        raise ConfigError(f"{run}: no forecast: it needs at least 4 samples of a question; set evaluation.samples=16")
    for sentence in found["sentences"]:
        printing.print_line(sentence)


def _print_labels(run: Path, n: int) -> None:
    """Draw questions to label, or say how the greedy answer and the vote do on those that are filled in."""
    from mm_spine.reporting.labelled import start_sentences
    from mm_spine.runs.labels import COLUMNS, LabelSheet

    sheet = LabelSheet(run)
    if not (sheet.path.exists() and any(row["answer"].strip() for row in files.read_csv(sheet.path, COLUMNS))):
        count = sheet.draw(n)
        printing.print_line(f"{sheet.path}: {count} questions; fill in the column answer, then give this command again")
        return
    sheet.apply()
    for sentence in start_sentences(run):
        printing.print_line(sentence)
