"""`mm-spine benchmarks` and `mm-spine benchmarks show NAME`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mm_spine.commands import printing
from mm_spine.commands.options import Plugins, SourceOption, SplitOption

app = typer.Typer(invoke_without_command=True)


@app.callback()
def benchmarks(context: typer.Context, plugin: Plugins = None) -> None:
    """List the benchmarks; `benchmarks show NAME` prints rows and prompts of one."""
    if context.invoked_subcommand is not None:
        return
    from mm_spine.benchmarks import BENCHMARKS
    from mm_spine.commands.preview import place

    table = Table("name", "kind", "split", "source, what it is, metric, licence", show_lines=True)
    for name, benchmark in BENCHMARKS.items():
        about = "\n".join((place(benchmark), benchmark.summary, benchmark.metric, benchmark.licence))
        table.add_row(*map(escape, (name, benchmark.kind, benchmark.adapt_split, about)))
    printing.console.print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A benchmark, or a folder of your own.")],
    source: SourceOption = None,
    split: SplitOption = None,
    limit: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    prompt: Annotated[str, typer.Option(help="reason, short or verbatim.")] = "reason",
    model: Annotated[str | None, typer.Option(help="The model whose processor renders the prompts.")] = None,
    plugin: Plugins = None,
) -> None:
    """Count a benchmark's rows and print the first with prompt, image sizes, tokens and gold."""
    from mm_spine.benchmarks import resolve
    from mm_spine.commands import preview

    benchmark = resolve(name)
    split = split or benchmark.adapt_split
    labelled = benchmark.load(split, source, prompt)
    reader = preview.prompt_reader(benchmark, model)
    printing.print_mapping(benchmark.name, preview.facts(benchmark, split, labelled, source))
    printing.print_losses((), labelled.problems)
    if reader.remark:
        printing.console.print(reader.remark, markup=False)
    for question in labelled.questions[:limit]:
        printing.console.print()
        for line in preview.row_lines(question, labelled, reader):
            printing.console.print(line, markup=False, highlight=False, soft_wrap=True)
