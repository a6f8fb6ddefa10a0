"""The answer to a question for a terminal, and as JSON. Responses are a model's text: what a terminal would act on is
written out."""

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

from mm_spine.commands.ask_session import Asked, Manner, Outcome, Response
from mm_spine.reporting.entropy_colours import coloured, legend
from mm_spine.types import Question
from mm_spine.words import visible

BAR = 20  # characters of a full bar, where there is room
BESIDE = 100  # columns of a terminal from which before and after stand side by side


class NoAnswer(ValueError):
    """No response could be read as an answer; the message shows them."""


def as_json(question: Question, how: Manner, asked: Asked, images: list[str]) -> dict[str, Any]:
    """One object: what was asked and how, the answer and its share, and `before` and `after` (null if not adapted).

    Shares are in [0, 1], entropies in nats, seconds in seconds; `answer` is null where nothing could be read.
    """
    config, outcome = how.config, asked.outcome
    return {
        "question": question.prompt,
        "images": images,
        "kind": question.spec.kind,
        "choices": list(question.spec.choices),
        "model": how.model,
        "seed": config.seed,
        "votes": config.sampling.votes.max,
        "temperature": config.sampling.temperature,
        "answer": outcome.vote.answer,
        "share": outcome.vote.share,
        "before": _outcome_json(asked.before),
        "adapted": _adapted_json(how, asked) if asked.after else None,
        "after": _outcome_json(asked.after) if asked.after else None,
    }


def no_answer(outcome: Outcome) -> NoAnswer:
    """The error for an outcome in which nothing was read, every response quoted."""
    quoted = "\n".join(f"  {i}: {visible(r.text)!r}" for i, r in enumerate(outcome.responses))
    return NoAnswer(
        f"none of {len(outcome.responses)} responses could be read as an answer; try another --kind, or more tokens "
        f"(sampling.max_new_tokens=...). They were:\n{quoted}"
    )


def report(asked: Asked, console: Console) -> Iterator[ConsoleRenderable]:
    """What to print: the answer, the vote and the winning response; if it adapted, before and after side by side,
    or one below the other where the terminal is narrow."""
    plain = console.color_system is None or console.no_color
    if asked.after is None:
        yield _outcome(asked.before, plain)
    else:
        steps = "1 step" if len(asked.steps) == 1 else f"{len(asked.steps)} steps"
        titles = Text("before", "bold"), Text(f"after {steps} on this question alone", "bold")
        outcomes = _outcome(asked.before, plain), _outcome(asked.after, plain)
        wide = console.width >= BESIDE
        both = Table.grid(*(["", ""] if wide else [""]), expand=True, padding=(0, 1))
        for column in both.columns:
            column.ratio = 1
        rows = (titles, outcomes) if wide else [(part,) for pair in zip(titles, outcomes, strict=True) for part in pair]
        for row in rows:
            both.add_row(*row)
        yield both
    yield legend(plain)
    yield Text(_cost(asked))


def _outcome(outcome: Outcome, plain: bool) -> ConsoleRenderable:
    parts: list[ConsoleRenderable] = [_headline(outcome), _counts(outcome)]
    if outcome.winner is not None:
        tokens = [token._replace(text=visible(token.text)) for token in outcome.winner.tokens]
        parts.append(Panel(coloured(tokens, plain), title="the response behind it", title_align="left"))
    return Group(*parts)


def _headline(outcome: Outcome) -> Text:
    if outcome.vote.answer is None:
        return Text("no answer could be read", "bold")
    votes = f"   {outcome.vote.share:.0%} of {len(outcome.responses)} votes"
    return Text.assemble(("answer: ", ""), (visible(outcome.vote.answer), "bold"), votes)


def _counts(outcome: Outcome) -> Table:
    table, of = Table("answer", "votes", "", box=box.SIMPLE_HEAD), len(outcome.responses)
    table.columns[1].justify = "right"
    for name, count in [*outcome.vote.counts.items(), (None, of - outcome.vote.n_parsed)]:
        if count:
            words = "[dim]not readable[/]" if name is None else escape(visible(name))
            bar = ProgressBar(of, count, BAR, complete_style="bright_blue", finished_style="bright_blue")
            table.add_row(words, str(count), bar)
    return table


def _cost(asked: Asked) -> str:
    outcomes = [outcome for outcome in (asked.before, asked.after) if outcome]
    n, tokens = sum(len(o.responses) for o in outcomes), sum(o.tokens for o in outcomes)
    text = f"{n} responses, {tokens:,} tokens in {sum(o.seconds for o in outcomes):.1f} s"
    return text + (f"; adapted in {asked.seconds:.1f} s" if asked.after else "")


def _adapted_json(how: Manner, asked: Asked) -> dict[str, Any]:
    shares = [report.majority_share for report in asked.steps]
    return {
        "method": how.config.method.name,
        "steps": len(asked.steps),
        "shares": shares,
        "seconds": round(asked.seconds, 3),
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
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


def _winner_json(winner: Response | None) -> dict[str, Any] | None:
    return None if winner is None else {"text": winner.text, "tokens": [token._asdict() for token in winner.tokens]}
