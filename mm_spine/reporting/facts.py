"""The plain facts of a run for its page: stamps, cost, phases, what was left out, the table of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mm_spine.reporting import compare, headline, tokens
from mm_spine.reporting.folder import Row, Saved, number, section

LISTED = 50
"""Skipped questions and bad rows that are listed; summary.json has them all."""


STEP_ROWS = 250
"""Rows of the table of steps; a longer run's are thinned evenly."""


STEP_COLUMNS = (
    "step", "lr", "loss", "grad_norm", "majority_share", "margin", "unparsed", "unanimous", "length_mean",
    "entropy_mean", "entropy_forks", "band_low", "band_high", "selected_share", "parity_max", "tokens_sampled",
)  # fmt: skip


_LABELS = {"True": "label-free: adapting read no gold answer", "False": "reads labels: a control, not a result"}
_CHECKSUM = {"True": "unchanged", "False": "CHANGED"}


def badges(saved: Saved) -> Iterator[tuple[str, bool]]:
    """The stamps of a run: (text, whether it is as it should be)."""
    summary = saved.summary
    if not summary:
        yield "unfinished: no summary.json", False
        if saved.stopped:
            yield f"stopped by {saved.stopped.get('stopped_by')} after {count(saved.stopped.get('steps'))} steps", False
        return
    same = summary.get("tower_checksum_unchanged")
    yield _LABELS.get(str(summary.get("label_free")), "label_free is not stated"), summary.get("label_free") is True
    if number(summary.get("frozen_parameters")) != 0:  # a text-only model has no tower
        yield f"vision tower frozen, checksum {_CHECKSUM.get(str(same), 'not stated')}", same is True
    if summary.get("stopped_by") not in (None, "steps"):
        yield f"stopped by {summary['stopped_by']}", False


def facts(saved: Saved) -> list[tuple[str, str, str]]:
    """(name, value, detail) of what the run cost and what was frozen, as far as summary.json says."""
    summary, seconds = saved.summary, section(saved.summary, "seconds")
    counts, cache = section(summary, "tokens"), section(summary, "image_cache")
    frozen, trainable = number(summary.get("frozen_parameters")), number(summary.get("trainable_parameters"))
    unchanged = _CHECKSUM.get(str(summary.get("tower_checksum_unchanged")), "not stated")
    peak, spared = number(summary.get("peak_memory_bytes")), number(counts.get("tokens_saved"))
    stepped = summary.get("steps") != 0
    found = [
        (
            "Time",
            _duration(number(seconds.get("total"))),
            _parts(seconds, ("sample", "update", "evaluate"), ",.1f", " s"),
        ),
        (
            "Tokens sampled in training",
            count(counts.get("sampled")),
            _parts(counts, ("selected", "trained")) + (f", about {spared:,.0f} spared" if spared else ""),
        ),
        ("Peak memory", "–" if peak is None else f"{peak / 1e9:.2f} GB", _device(saved)),
        ("Vision tower", "none" if frozen == 0 else "frozen", "" if frozen == 0 else f"checksum {unchanged}"),
        ("Merger", str(summary.get("merger", "–")), ""),
        ("Parameters that train", count(trainable) if stepped else "none: no step", f"{count(frozen)} frozen"),
        ("Steps", count(summary.get("steps")), votes(saved)),
        (
            "Image features",
            count(cache.get("hits")),
            f"taken from memory; tower ran {count(cache.get('tower_runs'))} x",
        ),
    ]
    return found if summary else []


def votes(saved: Saved) -> str:
    """How many rollouts vote on a question of the training; empty where nothing trained or no one knows."""
    n, stop = number(saved.summary.get("votes")), section(section(saved.config, "sampling"), "votes").get("stop")
    if n is None or saved.summary.get("steps") == 0:
        return ""
    return f"{'' if stop in (None, 'never') else 'at most '}{n:,.0f} votes a question"


def ranks(saved: Saved) -> int:
    """How many processes worked on the run."""
    return int(number(saved.environment.get("processes")) or 1)


def _device(saved: Saved) -> str:
    known = "gpus" in saved.environment
    where = ("of the GPU" if saved.environment["gpus"] else "of the process") if known else ""
    return f"{where}, the first of {ranks(saved)}" if ranks(saved) > 1 else where


def count(value: object) -> str:
    """A number with thousands set apart; a dash for what is none."""
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def _parts(values: Row, names: Sequence[str], form: str = ",.0f", unit: str = "") -> str:
    known = ((name, number(values.get(name))) for name in names)
    return ", ".join(f"{name} {value:{form}}{unit}" for name, value in known if value is not None)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def phases(saved: Saved) -> list[tuple[str, float, float]]:
    """(phase, seconds, share of the total), what no phase accounts for included."""
    seconds = section(saved.summary, "seconds")
    total = number(seconds.get("total"))
    if not total:
        return []
    known = {name: number(seconds.get(name)) or 0.0 for name in ("sample", "update", "evaluate")}
    known["everything else"] = max(0.0, total - sum(known.values()))
    return [(name, value, value / total) for name, value in known.items()]


def losses(saved: Saved) -> list[tuple[str, int, list[str]]]:
    """Questions that could not be asked and rows that could not be read: how many, and the first."""
    skipped, bad = saved.summary.get("skipped"), saved.summary.get("bad_rows")
    reasons = {
        "questions could not be asked": list(skipped.values()) if isinstance(skipped, Mapping) else [],
        "rows of the data lost something": list(bad) if isinstance(bad, list) else [],
    }
    return [
        (what, len(why), [tokens.shortened(str(each), 400, 100) for each in why[:LISTED]])
        for what, why in reasons.items()
        if why
    ]


def step_table(saved: Saved) -> dict[str, Any]:
    """steps.jsonl as text, every `every`-th step of it."""
    every = -(-len(saved.steps) // STEP_ROWS) or 1
    rows = [[_cell(number(row.get(name))) for name in STEP_COLUMNS] for row in saved.steps[::every]]
    return {"columns": STEP_COLUMNS, "rows": rows, "every": every, "thinned": every > 1}


def breakdowns(split: headline.Split) -> dict[str, list[tuple[str, str, list[str]]]]:
    """Tag -> (value, questions, "before → after" in percent of each measure)."""
    before, after = section(split.breakdown, "before"), section(split.breakdown, "after")
    table: dict[str, list[tuple[str, str, list[str]]]] = {}
    for tag in after or before:
        old, new = section(before, tag), section(after, tag)
        table[tag] = [
            (value, count(section(new, value).get("n", section(old, value).get("n"))), _pairs(old, new, value))
            for value in dict.fromkeys((*old, *new))
        ]
    return table


def _pairs(old: Row, new: Row, value: str) -> list[str]:
    names = headline.LABELS
    return [compare.shown_pair((number(section(old, value).get(n)), number(section(new, value).get(n)))) for n in names]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def outside(saved: Saved) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """lmms-eval's figures: when they were taken, and (task, metric, value at each time); both empty without any."""
    times = section(saved.summary, "lmms_eval")
    found = {when: values for when, values in times.items() if isinstance(values, Mapping)}
    names = dict.fromkeys((task, metric) for each in found.values() for task in each for metric in section(each, task))
    rows = [
        (task, metric, [_cell(number(section(each, task).get(metric))) for each in found.values()])
        for task, metric in names
    ]
    return list(found), rows
