"""What a run was, what it cost and what it left out, for its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mm_spine.measures import COMPARED
from mm_spine.reporting.formats import NONE, compact, count, duration, pair, shortened
from mm_spine.reporting.result import SplitResult
from mm_spine.reporting.saved_run import Json, SavedRun, number, section, shown_step

MAX_LISTED = 50
"""Skipped questions and bad rows that the page lists; summary.json has all of them."""

MAX_STEP_ROWS = 250
"""Rows of the table of steps; of a longer run, every k-th step is shown."""

STEP_COLUMNS = (
    "step", "lr", "loss", "grad_norm", "majority_share", "margin", "unparsed", "unanimous", "length_mean",
    "entropy_mean", "entropy_forks", "band_low", "band_high", "selected_share", "parity_max", "tokens_sampled",
)  # fmt: skip

_LABEL_FREE = {True: "label-free: adapting read no gold answer", False: "reads labels: a control, not a result"}
_CHECKSUM = {True: "unchanged", False: "CHANGED"}


class Badge(NamedTuple):
    """A stamp of a run, and whether it is as it should be."""

    text: str
    good: bool


class Fact(NamedTuple):
    """One value of summary.json, with a detail that may be empty."""

    name: str
    value: str
    detail: str


class PhaseTime(NamedTuple):
    """Seconds of a phase, and their share of the run's total."""

    name: str
    seconds: float
    share: float


class LeftOut(NamedTuple):
    """What the run could not use: how many, and the reasons of the first."""

    what: str
    total: int
    reasons: list[str]


class StepTable(NamedTuple):
    """Every `every`-th line of steps.jsonl, as text."""

    columns: Sequence[str]
    rows: list[list[str]]
    every: int


class BreakdownRow(NamedTuple):
    """The questions with one value of a tag: how many, and each measure before and after in percent."""

    value: str
    questions: str
    scores: list[str]


class ExternalTable(NamedTuple):
    """lmms-eval's scores: when they were taken, and (task, metric, value at each time)."""

    times: list[str]
    rows: list[tuple[str, str, list[str]]]


def badges(saved: SavedRun) -> Iterator[Badge]:
    """Yield the stamps of a run: unfinished or stopped, label-free or not, frozen or not."""
    summary = saved.summary
    if not summary:
        yield Badge("unfinished: no summary.json", False)
        if saved.stopped:
            steps = count(saved.stopped.get("steps"))
            yield Badge(f"stopped by {saved.stopped.get('stopped_by')} after {steps} steps", False)
        return
    label_free = summary.get("label_free")
    yield Badge(_stated(_LABEL_FREE, label_free) or "label_free is not stated", label_free is True)
    # A text-only model has no vision tower that could be frozen.
    if number(summary.get("frozen_parameters")) != 0:
        unchanged = summary.get("tower_checksum_unchanged")
        parameters = f"{count(summary.get('frozen_parameters'))} parameters, the checksum of the vision tower"
        yield Badge(f"frozen: {parameters} {_stated(_CHECKSUM, unchanged) or 'not stated'}", unchanged is True)
    guard = section(summary, "guard")
    if isinstance(guard.get("fired"), bool):
        blind = "the guard could not judge: too few of the questions were evaluated before, or sure"
        calm = "the guard did not fire" if guard.get("judged", True) else blind
        yield Badge(
            "the guard fired" if guard["fired"] else calm, not guard["fired"] and guard.get("judged", True) is True
        )
    if summary.get("stopped_by") == "settled":
        yield Badge(f"the votes settled after {count(summary.get('steps'))} steps", True)
    elif summary.get("stopped_by") not in (None, "steps"):
        yield Badge(f"stopped by {summary['stopped_by']}", False)


def _stated(texts: Mapping[bool, str], value: object) -> str | None:
    return texts[value] if isinstance(value, bool) else None


def facts(saved: SavedRun) -> list[Fact]:
    """Return what the run cost; [] without summary.json. What was frozen is a badge."""
    summary = saved.summary
    if not summary:
        return []
    seconds, tokens, cache = (section(summary, name) for name in ("seconds", "tokens", "image_cache"))
    spared = number(tokens.get("tokens_saved"))
    tokens_detail = _listed(tokens, ("selected", "trained"))
    if spared:
        tokens_detail += f", about {spared:,.0f} spared"
    peak = number(summary.get("peak_memory_bytes"))
    trainable = count(summary.get("trainable_parameters"))
    merger = "the merger too" if summary.get("merger") == "trained" else ""
    return [
        Fact(
            "Time",
            duration(number(seconds.get("total"))),
            _listed(seconds, ("sample", "update", "evaluate"), ",.1f", " s"),
        ),
        Fact("Tokens sampled in training", count(tokens.get("sampled")), tokens_detail),
        Fact("Peak memory", NONE if peak is None else f"{peak / 1e9:.2f} GB", _whose_memory(saved)),
        Fact("Trainable parameters", trainable if summary.get("steps") != 0 else "none: no step", merger),
        *_changed_options(summary.get("method_changes")),
        Fact("Steps", count(summary.get("steps")), votes(saved)),
        Fact(
            "Image features",
            count(cache.get("hits")),
            f"taken from memory; tower ran {count(cache.get('tower_runs'))} x",
        ),
    ]


def _changed_options(changes: object) -> list[Fact]:
    """Return how the run's options differ from those of its method; nothing where they do not."""
    if not isinstance(changes, list) or not changes:
        return []
    return [Fact("Options changed", f"{len(changes)}", "; ".join(map(str, changes)))]


def _listed(values: Json, names: Sequence[str], form: str = ",.0f", unit: str = "") -> str:
    """Return the known values after their names: "sample 30.0 s, update 20.0 s"."""
    known = ((name, number(values.get(name))) for name in names)
    return ", ".join(f"{name} {value:{form}}{unit}" for name, value in known if value is not None)


def _whose_memory(saved: SavedRun) -> str:
    where = ""
    if "gpus" in saved.environment:
        where = "of the GPU" if saved.environment["gpus"] else "of the process"
    processes = process_count(saved)
    return f"{where}, the first of {processes}" if processes > 1 else where


def votes(saved: SavedRun) -> str:
    """Return how many rollouts vote on a question in training; "" when no step was made or it is not known."""
    n = number(saved.summary.get("votes"))
    if n is None or saved.summary.get("steps") == 0:
        return ""
    stop = section(section(saved.config, "sampling"), "votes").get("stop")
    at_most = "" if stop in (None, "never") else "at most "
    return f"{at_most}{n:,.0f} votes a question"


def process_count(saved: SavedRun) -> int:
    """Return how many processes the run used."""
    return int(number(saved.environment.get("processes")) or 1)


def phases(saved: SavedRun) -> list[PhaseTime]:
    """Return the seconds of each phase and of everything else; [] when the total is not known."""
    seconds = section(saved.summary, "seconds")
    total = number(seconds.get("total"))
    if not total:
        return []
    by_phase = {name: number(seconds.get(name)) or 0.0 for name in ("sample", "update", "evaluate")}
    by_phase["everything else"] = max(0.0, total - sum(by_phase.values()))
    return [PhaseTime(name, value, value / total) for name, value in by_phase.items()]


def left_out(saved: SavedRun) -> list[LeftOut]:
    """Return the questions that could not be asked and the rows of the data that could not be read."""
    skipped, bad_rows = saved.summary.get("skipped"), saved.summary.get("bad_rows")
    reasons = {
        "questions could not be asked": list(skipped.values()) if isinstance(skipped, Mapping) else [],
        "rows of the data were not read in full": list(bad_rows) if isinstance(bad_rows, list) else [],
    }
    return [
        LeftOut(what, len(found), [shortened(str(reason), 400, 100) for reason in found[:MAX_LISTED]])
        for what, found in reasons.items()
        if found
    ]


def step_table(saved: SavedRun) -> StepTable:
    """Return the lines of steps.jsonl as a table of at most `MAX_STEP_ROWS` rows."""
    every = -(-len(saved.steps) // MAX_STEP_ROWS) or 1
    rows = [[_cell(line, name) for name in STEP_COLUMNS] for line in saved.steps[::every]]
    return StepTable(STEP_COLUMNS, rows, every)


def _cell(line: Json, name: str) -> str:
    value = number(line.get(name))
    return compact(shown_step(value) if name == "step" and value is not None else value)


def breakdowns(split: SplitResult) -> dict[str, list[BreakdownRow]]:
    """Return, for each tag of the benchmark, the scores by the tag's values."""
    before, after = section(split.breakdown, "before"), section(split.breakdown, "after")
    tables = {}
    for tag in after or before:
        old, new = section(before, tag), section(after, tag)
        tables[tag] = [
            _breakdown_row(value, section(old, value), section(new, value)) for value in dict.fromkeys((*old, *new))
        ]
    return tables


def _breakdown_row(value: str, old: Json, new: Json) -> BreakdownRow:
    scores = [pair((number(old.get(key)), number(new.get(key)))) for key in COMPARED]
    return BreakdownRow(value, count(new.get("n", old.get("n"))), scores)


def external_scores(saved: SavedRun) -> ExternalTable:
    """Return lmms-eval's scores, with no times and no rows when the run has none."""
    by_time = {
        when: scores for when, scores in section(saved.summary, "lmms_eval").items() if isinstance(scores, Mapping)
    }
    names = dict.fromkeys(
        (task, metric) for scores in by_time.values() for task in scores for metric in section(scores, task)
    )
    rows = [
        (task, metric, [compact(section(scores, task).get(metric)) for scores in by_time.values()])
        for task, metric in names
    ]
    return ExternalTable(list(by_time), rows)
