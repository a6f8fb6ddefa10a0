"""The answer to a question, for a terminal and as JSON.

Responses are a model's text, so control characters are written out as escapes before a terminal gets them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console, ConsoleRenderable, Group
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mm_spine.commands.ask_session import AskResult, AskSettings, VotedResponse, VoteOutcome
from mm_spine.reporting.entropy_colours import coloured, legend
from mm_spine.types import Question
from mm_spine.words import visible

BAR = 20
"""Characters of a full bar in a terminal that is wide enough."""

SIDE_BY_SIDE = 100
"""Columns of a terminal from which the outcomes before and after stand side by side."""


class NoAnswer(ValueError):
    """No response could be read as an answer. The message quotes all of them."""


def as_json(question: Question, settings: AskSettings, result: AskResult, images: list[str]) -> dict[str, Any]:
    """Return the JSON object that `--json` prints: question, settings, answer, share, and the outcomes.

    `adapted` and `after` are null without adaptation; `answer` is null if no response could be read. Shares are in
    [0, 1], entropies in nats, times in seconds.
    """
    config, outcome = settings.config, result.outcome
    return {
        "question": question.prompt,
        "images": images,
        "kind": question.spec.kind,
        "choices": list(question.spec.choices),
        "model": settings.model,
        "seed": config.seed,
        "votes": config.sampling.votes.max,
        "temperature": config.sampling.temperature,
        "answer": outcome.vote.answer,
        "share": outcome.vote.share,
        "before": _outcome_json(result.before),
        "adapted": _adapted_json(settings, result) if result.after else None,
        "after": _outcome_json(result.after) if result.after else None,
    }


def no_answer(outcome: VoteOutcome) -> NoAnswer:
    """Return the error for an outcome in which no response could be read."""
    quoted = "\n".join(f"  {i}: {visible(r.text)!r}" for i, r in enumerate(outcome.responses))
    return NoAnswer(
        f"none of {len(outcome.responses)} responses could be read as an answer; try another --kind, or more tokens "
        f"(sampling.max_new_tokens=...). They were:\n{quoted}"
    )


def report(result: AskResult, console: Console) -> Iterator[ConsoleRenderable]:
    """Yield what to print: answer, vote and winning response; after adaptation, both outcomes.

    The outcomes stand side by side in a wide terminal, else one below the other.
    """
    plain = console.color_system is None or console.no_color
    if result.after is None:
        yield _outcome(result.before, plain)
    else:
        steps = "1 step" if len(result.steps) == 1 else f"{len(result.steps)} steps"
        titles = Text("before", "bold"), Text(f"after {steps} on this question alone", "bold")
        outcomes = _outcome(result.before, plain), _outcome(result.after, plain)
        wide = console.width >= SIDE_BY_SIDE
        both = Table.grid(*(["", ""] if wide else [""]), expand=True, padding=(0, 1))
        for column in both.columns:
            column.ratio = 1
        rows = (titles, outcomes) if wide else [(part,) for pair in zip(titles, outcomes, strict=True) for part in pair]
        for row in rows:
            both.add_row(*row)
        yield both
    yield legend(plain)
    yield Text(_cost(result))


def _outcome(outcome: VoteOutcome, plain: bool) -> ConsoleRenderable:
    parts: list[ConsoleRenderable] = [_headline(outcome), _counts(outcome)]
    if outcome.winner is not None:
        tokens = [token._replace(text=visible(token.text)) for token in outcome.winner.tokens]
        parts.append(Panel(coloured(tokens, plain), title="the response behind it", title_align="left"))
    return Group(*parts)


def _headline(outcome: VoteOutcome) -> Text:
    if outcome.vote.answer is None:
        return Text("no answer could be read", "bold")
    votes = f"   {outcome.vote.share:.0%} of {len(outcome.responses)} votes"
    return Text.assemble(("answer: ", ""), (visible(outcome.vote.answer), "bold"), votes)


def _counts(outcome: VoteOutcome) -> Table:
    table, of = Table("answer", "votes", "", box=box.SIMPLE_HEAD), len(outcome.responses)
    table.columns[1].justify = "right"
    for name, count in [*outcome.vote.counts.items(), (None, of - outcome.vote.n_parsed)]:
        if count:
            words = "[dim]not readable[/]" if name is None else escape(visible(name))
            bar = ProgressBar(of, count, BAR, complete_style="bright_blue", finished_style="bright_blue")
            table.add_row(words, str(count), bar)
    return table


def _cost(result: AskResult) -> str:
    outcomes = [outcome for outcome in (result.before, result.after) if outcome]
    n, tokens = sum(len(o.responses) for o in outcomes), sum(o.tokens for o in outcomes)
    text = f"{n} responses, {tokens:,} tokens in {sum(o.seconds for o in outcomes):.1f} s"
    return text + (f"; adapted in {result.seconds:.1f} s" if result.after else "")


def _adapted_json(settings: AskSettings, result: AskResult) -> dict[str, Any]:
    shares = [step.majority_share for step in result.steps]
    return {
        "method": settings.config.method.name,
        "steps": len(result.steps),
        "shares": shares,
        "seconds": round(result.seconds, 3),
    }


def _outcome_json(outcome: VoteOutcome) -> dict[str, Any]:
    return {
        "answer": outcome.vote.answer,
        "share": outcome.vote.share,
        "margin": outcome.vote.margin,
        "responses": [{"text": r.text, "answer": r.answer} for r in outcome.responses],
        "unparsed": len(outcome.responses) - outcome.vote.n_parsed,
        "counts": dict(outcome.vote.counts),
        "winner": _winner_json(outcome.winner),
        "seconds": round(outcome.seconds, 3),
        "tokens": outcome.tokens,
    }


def _winner_json(winner: VotedResponse | None) -> dict[str, Any] | None:
    return None if winner is None else {"text": winner.text, "tokens": [token._asdict() for token in winner.tokens]}
