"""The `mm-spine` command."""

from __future__ import annotations

import io
import json
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mm_spine.compat import quiet_logs
from mm_spine.config import ConfigError, MethodConfig, RunConfig, RunStopped

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
benchmarks_app = typer.Typer(invoke_without_command=True)
app.add_typer(benchmarks_app, name="benchmarks")
console = Console()

SHOWN = 10  # losses listed in full; summary.json has them all
INTERRUPTED = {"SIGINT": 128 + signal.SIGINT, "SIGTERM": 128 + signal.SIGTERM}

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="e.g. optim.lr=1e-5")]
SavedRows = Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object per line.")]
KindOption = Annotated[str | None, typer.Option(help="The answer kind of every row; a row's own `kind` goes before.")]
BenchmarkOption = Annotated[str | None, typer.Option(help="A name or a folder: its kind, and what rows leave out.")]
SourceOption = Annotated[str | None, typer.Option(help="Where its data lies: a folder, or another hub id.")]
SplitOption = Annotated[str | None, typer.Option(help="Its split; the one that is adapted to unless given.")]
AsJson = Annotated[bool, typer.Option("--json", help="End with the summary as one line of JSON.")]
ModelOption = Annotated[str | None, typer.Option(help="A model folder or hub id; the embedded one unless given.")]
AskedAs = Annotated[
    str | None, typer.Option("--benchmark", help="Ask as this benchmark does: its kind, prompt, decoding, optimiser.")
]
AskedKind = Annotated[
    str | None, typer.Option("--kind", help="The answer's kind; unset: by choices, words, benchmark, else text.")
]
LOCAL = "127.0.0.1"
Seed = Annotated[int | None, typer.Option(help="Seeds every draw; 0 unless the configuration says otherwise.")]


@app.command()
def adapt(
    target: Annotated[str, typer.Argument(metavar="BENCHMARK|CONFIG.yaml", help="A name, a folder, or a YAML file.")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder; must not hold a run yet.")] = None,
    method: Annotated[str | None, typer.Option(help="See `mm-spine methods`.")] = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --output.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print the configuration and what it would take, load nothing.")
    ] = False,
    allow_labels: Annotated[bool, typer.Option(help="Let the control `oracle` read the labels.")] = False,
) -> None:
    """Adapt a model to unlabelled questions; evaluate before and after."""
    from mm_spine import distributed
    from mm_spine.runs.listeners.live import watching
    from mm_spine.runs.plan import check, load_config
    from mm_spine.runs.run import run

    config = load_config(target, overrides or (), method, seed)
    plan = check(config, allow_labels)
    if dry_run:
        _print_plan(config, plan.model)
        return
    if output is None:
        raise ConfigError("--output is not set: name a folder for this run")
    with watching() as listener:
        summary = run(config, output, resume=resume, allow_labels=allow_labels, listener=listener)
    console.quiet = distributed.rank() > 0
    if summary is None:
        stopped = _stopped_by(output)
        again = "start again in a new folder"  # what scope=question adapts is gone with each question
        if config.scope == "dataset":
            again = f"go on with: mm-spine adapt {target} ... --output {output} --resume"
        console.print(f"stopped by {stopped}; {again}", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED[stopped])
    _print_runs([output])
    _print_losses(summary)
    console.print(f"written to {output}", markup=False, soft_wrap=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder or hub id.")],
    benchmark: Annotated[str, typer.Argument(help="A name or a folder.")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Also write the verdicts, a line per question.")] = None,
    seed: Seed = None,
) -> None:
    """Greedy, pass@1, maj@N and pass@N of a model with intervals, on the adapted split or `split=NAME`."""
    from mm_spine.runs.evaluate import evaluate_model
    from mm_spine.runs.listeners.live import watching
    from mm_spine.runs.plan import load_config

    config = load_config(benchmark, [*(overrides or ()), f"model.path={json.dumps(model)}"], "none", seed)
    with watching() as listener:
        figures = evaluate_model(config, output, listener)
    losses = {name: figures.pop(name) for name in ("skipped", "bad_rows")}
    by_tag = figures.pop("breakdown")
    _print_mapping(f"{model} on {benchmark}", figures)
    for tag, rows in by_tag.items():
        _print_rows(tag, rows)
    _print_losses(losses)


@app.command()
def methods() -> None:
    """The methods and controls, with the options each sets."""
    from mm_spine.methods.table import METHODS

    table = Table("method", "what it does", "source", "own defaults")
    for name, row in METHODS.items():
        own = ", ".join(f"{key}={value}" for key, value in row.options.items())
        table.add_row(name, row.summary + ("" if row.label_free else " (reads labels)"), row.source, own)
    console.print(table)
    common = ", ".join(f"{key}={value}" for key, value in MethodConfig().model_dump().items() if key != "name")
    console.print(f"options (method.KEY=VALUE) and their common defaults: {common}", markup=False)


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG, WebP, GIF, BMP or TIFF file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help='e.g. "Is there a fracture?"')],
    overrides: Overrides = None,
    more: Annotated[list[Path] | None, typer.Option("--image", help="A further image; may be repeated.")] = None,
    model: ModelOption = None,
    benchmark: AskedAs = None,
    kind: AskedKind = None,
    choices: Annotated[
        list[str] | None, typer.Option("--choices", "--choice", help="One option to choose from; repeated for each.")
    ] = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="Add no words on how to answer.")] = False,
    votes: Annotated[int, typer.Option(min=2, max=1024, help="How many responses vote.")] = 16,
    steps: Annotated[int, typer.Option("--adapt", min=0, help="Adapt to this question first, so many steps.")] = 0,
    method: Annotated[str, typer.Option(help="How it adapts, and which tokens are forks.")] = "spine",
    seed: Annotated[int, typer.Option(help="Seeds every draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Ask about an image: the answer, its vote, and the winning response with its forking tokens."""
    from mm_spine.commands import ask_output, ask_session

    how = ask_session.manner(
        model, benchmark, votes=votes, steps=steps, method=method, seed=seed, overrides=overrides or ()
    )
    images = [image, *(more or ())]
    asked_of = ask_session.question_of(question, images, how, kind, choices or (), as_is)
    ask_session.check_images(asked_of)
    asked = ask_session.answer(ask_session.load(how), asked_of, how)
    failed = None if asked.outcome.vote.answer is not None else ask_output.no_answer(asked.outcome)
    if as_json:
        print(
            json.dumps(ask_output.as_json(asked_of, how, asked, list(map(str, images))))
        )  # ASCII: names may be no UTF-8
    elif failed is None or asked.after is not None:
        console.print(*ask_output.report(asked, console), sep="\n")
    if failed is not None:
        raise failed


@app.command()
def serve(
    model: ModelOption = None,
    benchmark: AskedAs = None,
    overrides: Overrides = None,
    kind: AskedKind = None,
    method: Annotated[str, typer.Option(help="How it adapts, and which tokens are forks.")] = "spine",
    seed: Annotated[int, typer.Option(help="Seeds every draw.")] = 0,
    host: Annotated[str, typer.Option(help="Which address to listen on; another than this machine's is open.")] = LOCAL,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: the first free one from 7860 on.")] = 7860,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest file that may be uploaded.")] = 20,
    open_to_network: Annotated[bool, typer.Option(help="Needed for a --host that others can reach.")] = False,
) -> None:
    """`ask` as a local web page: upload or paste an image, ask, and watch the vote."""
    from mm_spine.commands import ask_session, serve_page

    serve_page.check_host(host, open_to_network)
    how = ask_session.manner(model, benchmark, method=method, seed=seed, overrides=overrides or ())
    settings = serve_page.Settings(model, benchmark, kind, method, seed, tuple(overrides or ()))
    serve_page.serve(serve_page.Desk(ask_session.load(how), settings), host, port, max_upload_mb)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the first is what others differ from.")],
    output: Annotated[
        Path | None, typer.Option(help="Also write a page (.html: table and curves) or a picture (.png: curves).")
    ] = None,
) -> None:
    """A table of runs: before, vote, after, paired differences with 95 % intervals; overlaid curves with --output."""
    from mm_spine.reporting.report import write_comparison

    if output is not None:
        write_comparison(runs, output)
    _print_runs(runs)
    if output is not None:
        console.print(f"written to {output}", markup=False, soft_wrap=True)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a run, finished or not.")],
    output: Annotated[Path | None, typer.Option(help="Where to write the page; RUN/report.html unless given.")] = None,
) -> None:
    """A run as one page: result, curves, tokens, the questions that changed; and each figure as PNG in RUN/figures."""
    from mm_spine.reporting.report import write_report

    console.print(f"written to {write_report(run, output)}", markup=False, soft_wrap=True)


@app.command()
def grade(
    file: SavedRows,
    kind: KindOption = None,
    benchmark: BenchmarkOption = None,
    source: SourceOption = None,
    split: SplitOption = None,
    output: Annotated[Path | None, typer.Option(help="Write a verdict per row: JSON lines, in the same order.")] = None,
    as_json: AsJson = False,
) -> None:
    """Grade saved responses: rows with `id`, `response`, `answer`, and where needed `choices`, `precision`, ..."""
    from mm_spine.commands.saved_rows import grade_file, rules

    summary = grade_file(file, rules(kind, benchmark, source, split), output)
    figures = {"accuracy (mean score)": summary["accuracy"], "n": summary["n"], "unparsed": summary["unparsed"]}
    if summary["correct"] != summary["accuracy"]:  # where scores are fractions, as in VQA
        figures["correct"] = summary["correct"]
    _print_graded(figures, summary, output, as_json)


@app.command()
def vote(
    file: SavedRows,
    kind: KindOption = None,
    benchmark: BenchmarkOption = None,
    source: SourceOption = None,
    split: SplitOption = None,
    output: Annotated[Path | None, typer.Option(help="Write a vote per row: JSON lines, in the same order.")] = None,
    as_json: AsJson = False,
) -> None:
    """Vote over saved samples: rows with `id`, `responses`, the fields that `grade` takes, and `answer` if known."""
    from mm_spine.commands.saved_rows import rules, vote_file

    summary = vote_file(file, rules(kind, benchmark, source, split), output)
    size = summary["responses"]
    n = int(size) if size is not None and size == int(size) else "N"
    figures = {name: summary[name] for name in ("n", "responses", "share", "unparsed", "ties", "all_unparsed")}
    if summary["n_labelled"]:
        figures |= {"n_labelled": summary["n_labelled"], f"maj@{n}": summary["maj_at_n"]}
        figures |= {"pass@1": summary["pass_at_1"], f"pass@{n}": summary["pass_at_n"]}
    _print_graded(figures, summary, output, as_json)


@benchmarks_app.callback()
def benchmarks(context: typer.Context) -> None:
    """The benchmarks; `benchmarks show NAME` for its rows and prompts."""
    from mm_spine.benchmarks import BENCHMARKS
    from mm_spine.commands.preview import place

    if context.invoked_subcommand is not None:
        return
    table = Table("name", "kind", "split", "source, what it is, metric, licence", show_lines=True)
    for name, row in BENCHMARKS.items():
        about = "\n".join((place(row), row.summary, row.metric, row.licence))
        table.add_row(*map(escape, (name, row.kind, row.adapt_split, about)))
    console.print(table)


@benchmarks_app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A benchmark or a folder.")],
    source: SourceOption = None,
    split: SplitOption = None,
    limit: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    prompt: Annotated[str, typer.Option(help="reason or short.")] = "reason",
    model: Annotated[str | None, typer.Option(help="The model whose processor renders the prompts.")] = None,
) -> None:
    """A benchmark's rows: how many can be asked, and the first with prompt, image sizes, tokens and gold."""
    from mm_spine.benchmarks import resolve
    from mm_spine.commands import preview

    benchmark = resolve(name)
    split = split or benchmark.adapt_split
    labelled = benchmark.load(split, source, prompt)
    by = preview.reading(benchmark, model)
    _print_mapping(benchmark.name, preview.facts(benchmark, split, labelled, source))
    _print_losses({"skipped": {}, "bad_rows": labelled.problems})
    if by.remark:
        console.print(by.remark, markup=False)
    for question in labelled.questions[:limit]:
        console.print()
        for line in preview.row_lines(question, labelled, by):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor() -> None:
    """What this machine has, which samplers it can run, and why not the others."""
    from mm_spine.commands.doctor import checks

    table = Table("check", "", "found", "what to do")
    results = checks()
    for result in results:
        found, advice = escape(result.detail), escape(result.advice)  # `pip install "mm-spine[eval]"` is no markup
        table.add_row(result.name, "ok" if result.ok else "no", found, advice)
    console.print(table)


def _print_plan(config: RunConfig, model: str) -> None:
    """The resolved configuration and, where the model is already here, what the run would take."""
    from mm_spine.commands.estimate import estimate
    from mm_spine.policy.errors import ModelAbsent
    from mm_spine.policy.folder import resolve_model

    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    console.print(resolved, end="", markup=False, soft_wrap=True)  # a wrapped line would not be the same YAML
    try:
        folder = resolve_model(model, fetch=False)
    except ModelAbsent:
        console.print(f"no estimate: {model} is not on this machine yet; the run fetches it", markup=False)
        return
    _print_mapping("By arithmetic", estimate(config, folder))


def _print_losses(summary: Mapping[str, Any]) -> None:
    """The questions that could not be asked and the rows that could not be read: how many, and the first of them."""
    for key, what in (("skipped", "questions could not be asked"), ("bad_rows", "rows of the data lost something")):
        reasons = list(summary[key].values() if isinstance(summary[key], dict) else summary[key])
        if reasons:
            console.print(f"{len(reasons)} {what}:", markup=False)
        for reason in reasons[:SHOWN]:
            console.print(f"  {reason}", markup=False, soft_wrap=True)
        if len(reasons) > SHOWN:
            console.print(f"  ... and {len(reasons) - SHOWN} more", markup=False)


def _print_graded(figures: dict[str, Any], summary: dict[str, Any], output: Path | None, as_json: bool) -> None:
    """What `grade` and `vote` end with: the figures, their breakdowns, the rows left out, the summary as a line."""
    _print_mapping("", figures)
    for tag, rows in summary["breakdowns"].items():
        _print_rows(tag, rows)
    if summary["errors"]:
        console.print(f"{summary['errors']} of {summary['rows']} rows could not be used and are in no mean:")
    for problem in summary["problems"]:
        console.print(f"  {problem}", markup=False, soft_wrap=True)
    if stopped := summary["checker_stopped"]:
        console.print(f"{stopped} pairs of formulas hit the checker's limits and count as different")
    if output is not None:
        console.print(f"written to {output}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))


def _print_rows(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """One row per value of a tag, one column per figure."""
    table = Table(escape(title), *next(iter(rows.values())), title_justify="left")
    for value, figures in rows.items():
        table.add_row(escape(value), *map(_short, figures.values()))
    console.print(table)


def _print_runs(runs: list[Path]) -> None:
    from mm_spine.reporting.compare import comparison_table

    console.print(comparison_table(runs))


def _print_mapping(title: str, values: dict[str, Any]) -> None:
    table = Table("", "", title=escape(title), title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else escape(_short(value)))
    console.print(table)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "[" + ", ".join(map(_short, value)) + "]" if isinstance(value, list) else str(value)


def _stopped_by(output: Path) -> str:
    return str(json.loads((output / "stopped.json").read_text())["stopped_by"])


def main() -> None:
    """Entry point: what the user can mend is one message and exit code 2, not a traceback."""
    from mm_spine.processors.vision import BadQuestion

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    quiet_logs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal has no sign for ends no command
    try:
        app()
    except (ConfigError, RunStopped, BadQuestion, ValueError, OSError) as error:  # OSError: a full disk, ...
        print(f"mm-spine: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
