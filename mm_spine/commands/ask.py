"""`mm-spine ask`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mm_spine.commands import printing
from mm_spine.commands.options import AskedAs, AskedKind, AskedMethod, AskedSeed, ModelOption, Overrides, Plugins


def ask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image; FILE#3 or FILE#window=lung for a part.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help='e.g. "Is there a fracture?"')],
    overrides: Overrides = None,
    more: Annotated[list[Path] | None, typer.Option("--image", help="A further image; may be repeated.")] = None,
    model: ModelOption = None,
    benchmark: AskedAs = None,
    kind: AskedKind = None,
    choices: Annotated[
        list[str] | None, typer.Option("--choices", "--choice", help="One option to choose from; repeat for each.")
    ] = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="Add no instructions on how to answer.")] = False,
    votes: Annotated[int, typer.Option(min=2, max=1024, help="How many responses vote.")] = 16,
    steps: Annotated[int, typer.Option("--adapt", min=0, help="Steps of adaptation to this question first.")] = 0,
    method: AskedMethod = "spine",
    seed: AskedSeed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    plugin: Plugins = None,
) -> None:
    """Ask about an image: the answer, its vote, and the winning response with its forking tokens."""
    from mm_spine.commands import ask_output, ask_session

    options = ask_session.AskOptions(model, benchmark, kind, votes, steps, method, seed, tuple(overrides or ()))
    settings = ask_session.ask_settings(options)
    images = [image, *(more or ())]
    asked = ask_session.question_of(question, images, settings, choices or (), as_is)
    ask_session.check_images(asked)
    result = ask_session.answer(ask_session.load(settings), asked, settings)
    answered = result.outcome.vote.answer is not None
    if as_json:
        # ASCII: a file's name may hold bytes that are no UTF-8.
        print(json.dumps(ask_output.as_json(asked, settings, result, list(map(str, images)))))
    elif answered or result.after is not None:
        printing.console.print(*ask_output.report(result, printing.console), sep="\n")
    if not answered:
        raise ask_output.no_answer(result.outcome)
