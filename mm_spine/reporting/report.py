"""report.html of a run, and the page of a comparison: one file each, from the files of the runs alone.

A page needs no network and asks for none: its policy (CSP) forbids every request, and runs no script but its own.
Everything that stands in a file is text here, whatever it looks like (jinja2 escapes it).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mm_spine.intervals import Interval
from mm_spine.reporting import compare, curves, figures, headline, tokens
from mm_spine.reporting.changed import SHOWN, Change, changes, text_of, thumbnails
from mm_spine.reporting.folder import Row, Saved, number, read_run, section

ROLLOUTS_EACH = 4
"""Responses from training that the page shows of a question."""

IMAGE_BYTES = 5_000_000
"""Of images in one page, before their base64; those of later questions stay in the run's folder."""

LISTED = 50
"""Skipped questions and bad rows that are listed; summary.json has them all."""

STEP_ROWS = 1000
"""Rows of the table of steps; a longer run's are thinned evenly."""


class Drawn(NamedTuple):
    """A figure as the page holds it; `data` is what it reads out under the pointer, None for one without steps."""

    name: str
    title: str
    note: str
    svg: Markup
    data: Mapping[str, Any] | None


class Share(NamedTuple):
    """One class of equal answers: how many of the votes it has before and after, and whether it is right."""

    answer: str
    before: int
    after: int
    right: bool | None


@dataclass(frozen=True)
class Shown:
    """One question of the list of changes."""

    id: str
    split: str
    prompt: str
    images: tuple[str, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    shares: tuple[Share, ...]
    rollouts: Sequence[Mapping[str, Any]]


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write figures/*.png and report.html of the run in `run`, or the page alone to `output`; returns its path.

    A part whose file is absent says so on the page. Raises ValueError when `run` holds no run.
    """
    saved = read_run(run)
    page = render(saved, None if output else run / "figures")
    return _write(output or run / "report.html", page)


def write_comparison(runs: Sequence[Path], output: Path) -> Path:
    """Write the table and the overlaid curves of several runs to `output`, .html, or the curves alone to .png.

    Raises ValueError for another suffix, for runs that `compare.rows` refuses, and for a PNG without a curve.
    """
    if output.suffix not in (".html", ".png"):
        raise ValueError(f"--output {output}: give a name that ends in .html (table and curves) or .png (curves)")
    lines = compare.rows(runs)
    named = list(_named(runs))
    charts = list(curves.overlaid(named))
    if output.suffix == ".html":
        return _write(output, _comparison(lines, charts, named))
    if not charts:
        raise ValueError(f"--output {output}: none of these runs has a steps.jsonl, so there is no curve to draw")
    with figures.style():
        figures.save_png(figures.panels(charts), output)
    return output


def render(saved: Saved, figures_folder: Path | None = None) -> str:
    """The page of one run as text; with `figures_folder`, each figure is also written there as PNG."""
    missing = list(saved.missing)
    splits = headline.headline(saved)
    spread = _attempt(lambda: tokens.spread(saved.rollouts), missing)
    with figures.style():
        drawn = {figure.name: figure for figure in _figures(saved, splits, spread, figures_folder)}
    tokenizer = tokens.load_tokenizer(saved.path)
    if saved.rollouts and tokenizer is None:
        missing.append("adapted/tokenizer.json is not there: tokens are numbers, and responses are not coloured.")
    directions = _changed(saved, tokenizer, missing)
    if not (saved.path / "images").is_dir() and any(part.shown for part in directions):
        missing.append("images/ is not there (reporting.images was false, or an older run): no image is shown.")
    benchmark = saved.summary.get("benchmark") or saved.config.get("benchmark") or "an unknown benchmark"
    return _template("report.html.j2").render(
        _common(f"{saved.name} on {benchmark}"),
        **_top(saved),
        **_token_part(spread, tokenizer),
        saved=saved,
        splits=[(split, list(headline.sentences(split))) for split in splits],
        measures=list(headline.LABELS.values()),
        breakdowns=_breakdowns,
        drawn=drawn,
        timing=curves.TIMING,
        directions=directions,
        evaluated=bool(saved.before and saved.after),
        losses=_losses(saved),
        missing=missing,
        phases=_phases(saved),
        table=_step_table(saved),
    )


def _top(saved: Saved) -> dict[str, Any]:
    """What the run was, its stamps, its cost and its settings."""
    summary = saved.summary
    about = [f"model {summary['model']}" if "model" in summary else "", f"seed {_count(saved.config.get('seed'))}"]
    about += [f"{_count(summary[name])} {name}" for name in ("steps", "votes") if name in summary]
    settings = yaml.safe_dump(dict(saved.config), sort_keys=False, allow_unicode=True) if saved.config else ""
    return {
        "about": [each for each in about if each],
        "badges": list(_badges(saved)),
        "facts": _facts(saved),
        "config": settings,
        "environment": json.dumps(saved.environment, indent=2, ensure_ascii=False) if saved.environment else "",
    }


_CHECKSUM = {"True": "unchanged", "False": "CHANGED"}


def _badges(saved: Saved) -> Iterator[tuple[str, bool]]:
    """(text, whether it is as it should be)."""
    summary = saved.summary
    if not summary:
        yield "unfinished: no summary.json", False
        return
    free, same = summary.get("label_free"), summary.get("tower_checksum_unchanged")
    yield (
        ("label-free: adapting read no gold answer", True)
        if free is True
        else (
            ("reads labels: a control, not a result" if free is False else "label_free is not stated"),
            False,
        )
    )
    yield f"vision tower frozen, checksum {_CHECKSUM.get(str(same), 'not stated')}", same is True
    if summary.get("stopped_by") not in (None, "steps"):
        yield f"stopped by {summary['stopped_by']}", False


def _attempt(read: Any, missing: list[str]) -> Any:
    """What `read()` returns; None, and a sentence in `missing`, where a file is damaged."""
    try:
        return read()
    except (ValueError, OSError, KeyError, TypeError) as error:
        missing.append(f"The saved rollouts could not be read: {error}")
        return None


def _figures(
    saved: Saved, splits: Sequence[headline.Split], spread: tokens.Spread | None, folder: Path | None
) -> Iterator[Drawn]:
    for split in splits:
        if split.known:
            name = f"scores_{split.name}"
            words = f"{split.title}, before and after, with 95 % intervals; the table gives the figures"
            yield _drawn(name, split.title, "", figures.draw_scores(split), words, folder)
    for chart in curves.charts(saved):
        yield _drawn_chart(chart, folder)
    if spread is not None:
        words = "Tokens by entropy, selected and others, with the threshold"
        yield _drawn("entropy_histogram", "Entropy of all tokens", "", figures.draw_spread(spread), words, folder)


def _drawn_chart(chart: curves.Chart, folder: Path | None) -> Drawn:
    figure = figures.draw(chart)
    drawn = _drawn(chart.name, chart.title, chart.note, figure, figures.described(chart), folder)
    bands = chart.band or ()
    lines = [
        {"label": line.label, "x": line.x, "y": [float(f"{value:.4g}") for value in line.y]}
        for line in (*chart.series, *bands)
    ]
    unit = "%" if chart.scale == "share" else chart.unit
    return drawn._replace(data={**figures.frame(figure), "unit": unit, "lines": lines})


def _drawn(name: str, title: str, note: str, figure: Any, words: str, folder: Path | None) -> Drawn:
    if folder is not None:
        figures.save_png(figure, folder / f"{name}.png")
    return Drawn(name, title, note, Markup(figures.svg(figure, name, words)), None)


class Direction(NamedTuple):
    """The questions that changed one way: how many in all, and those that the page shows."""

    name: str
    mark: str
    turn: str
    title: str
    total: int
    shown: Sequence[Shown]


def _changed(saved: Saved, tokenizer: Any, missing: list[str]) -> list[Direction]:
    found = changes(saved.before, saved.after)
    wanted = [change.place[1] for change in found.shown() if change.place[0] == "adapted"]
    rows = _attempt(lambda: tokens.responses(saved.rollouts, wanted, ROLLOUTS_EACH), missing) or {}
    budget = _Budget(IMAGE_BYTES)

    def direction(name: str, mark: str, turn: str, title: str, part: Sequence[Change]) -> Direction:
        shown = [_shown(change, saved, rows, tokenizer, budget) for change in part[:SHOWN]]
        return Direction(name, mark, turn, title, len(part), shown)

    directions = [
        direction("gained", "▲", "wrong → right", "Wrong before, right after", found.gained),
        direction("lost", "▼", "right → wrong", "Right before, wrong after", found.lost),
        direction("moved", "◆", "another vote", "Another vote, no gold answer", found.moved),
    ]
    if budget.refused:
        missing.append(f"Images of {budget.refused} questions are left out to keep this page small; see images/.")
    return directions


class _Budget:
    """Bytes of images that the page may still take, and how many questions had to go without."""

    def __init__(self, left: int) -> None:
        self.left, self.refused = left, 0

    def take(self, images: Sequence[tuple[str, bytes]]) -> tuple[str, ...]:
        size = sum(len(data) for _, data in images)
        if size > self.left:
            self.refused += 1
            return ()
        self.left -= size
        return tuple(f"data:{media};base64,{base64.b64encode(data).decode()}" for media, data in images)


def _shown(change: Change, saved: Saved, rows: Mapping[str, Any], tokenizer: Any, budget: _Budget) -> Shown:
    split, name = change.place
    sampled = rows.get(name, ()) if split == "adapted" else ()
    return Shown(
        id=name,
        split=split,
        prompt=tokens.shortened(saved.questions.get((split, name), "")),
        images=budget.take(list(thumbnails(saved.path, name))),
        before=_side(change.before),
        after=_side(change.after),
        shares=_shares(change),
        rollouts=[tokens.token_row(row, tokenizer) for row in sampled],
    )


def _side(row: Row) -> dict[str, Any]:
    """What one evaluation says of a question: greedy text and verdict, the vote, and the votes that it has."""
    greedy = row["greedy"] if isinstance(row["greedy"], Mapping) else {}
    classes = [name for name in row["classes"] if name is not None]
    votes = Counter(classes).most_common(1)
    return {
        "text": tokens.shortened(str(row["greedy_text"])),
        "why": str(greedy.get("why", "")),
        "correct": greedy.get("correct"),
        "vote": text_of(row["vote"]),
        "votes": votes[0][1] if votes else 0,
        "samples": len(row["classes"]),
    }


def _shares(change: Change, most: int = 6) -> tuple[Share, ...]:
    """The classes of answers with their votes before and after, the largest first, no answer last."""
    counts: list[Counter[str | None]] = [Counter(row["classes"]) for row in change]
    texts, right = dict[str | None, str](), dict[str | None, bool]()
    for row in change:
        for place, (name, answer) in enumerate(zip(row["classes"], row["answers"], strict=False)):
            texts.setdefault(name, text_of(answer) or str(name))
            if row["verdicts"] is not None and place < len(row["verdicts"]):
                right.setdefault(name, bool(row["verdicts"][place]["correct"]))
    order = sorted(texts, key=lambda name: (name is None, -counts[0][name] - counts[1][name], texts[name]))
    return tuple(
        Share("no answer" if name is None else tokens.shortened(texts[name], 80, 40), counts[0][name], counts[1][name],
              None if name is None else right.get(name))
        for name in order[:most]
    )  # fmt: skip


def _token_part(spread: tokens.Spread | None, tokenizer: Any) -> dict[str, Any]:
    """The histogram's words, the table of tokens, and the entropy (nats) at which a token's colour is full."""
    if spread is None:
        return {"spread": None, "spread_note": "", "forks": [], "top": 2.0}
    note = [f"Logarithmic counts over {spread.read:,} of {spread.steps:,} steps."]
    if spread.threshold:
        low, middle, high = spread.threshold
        note.append(
            f"Dashed: the lowest entropy selected in a response, {middle:.2f} nats at the median, shaded from "
            f"{low:.2f} (10 % of the responses) to {high:.2f} (90 %)."
        )
    else:
        note.append("The selection takes every token or does not go by entropy: there is no threshold.")
    cumulative = np.cumsum(spread.selected_B)
    at_95 = float(np.searchsorted(cumulative, 0.95 * cumulative[-1])) * tokens.BIN
    top = round(min(4.0, max(0.5, at_95)), 1)
    return {"spread": spread, "spread_note": " ".join(note), "forks": _forks(spread, tokenizer), "top": top}


def _forks(spread: tokens.Spread, tokenizer: Any) -> list[dict[str, Any]]:
    most = max((fork.count for fork in spread.forks), default=1)
    return [
        {**vars(fork), "text": None if tokenizer is None else tokens.pieces(tokenizer, [fork.token])[0],
         "length": fork.count / most}
        for fork in spread.forks
    ]  # fmt: skip


def _facts(saved: Saved) -> list[tuple[str, str, str]]:
    """(name, value, detail) of what the run cost and what was frozen, as far as summary.json says."""
    summary, seconds = saved.summary, section(saved.summary, "seconds")
    counts, cache = section(summary, "tokens"), section(summary, "image_cache")
    frozen, trainable = number(summary.get("frozen_parameters")), number(summary.get("trainable_parameters"))
    unchanged = _CHECKSUM.get(str(summary.get("tower_checksum_unchanged")), "not stated")
    peak = number(summary.get("peak_memory_bytes"))
    facts = [
        (
            "Time",
            _duration(number(seconds.get("total"))),
            _parts(seconds, ("sample", "update", "evaluate"), ",.1f", " s"),
        ),
        ("Tokens sampled", _count(counts.get("sampled")), _parts(counts, ("trained", "selected"))),
        ("Peak memory", "–" if peak is None else f"{peak / 1e9:.2f} GB", ""),
        ("Vision tower", "frozen", f"checksum {unchanged}"),
        ("Merger", str(summary.get("merger", "–")), ""),
        ("Parameters that train", _count(trainable), f"{_count(frozen)} frozen"),
        ("Steps", _count(summary.get("steps")), f"{_count(summary.get('votes'))} votes a question"),
        (
            "Image features",
            _count(cache.get("hits")),
            f"taken from memory; tower ran {_count(cache.get('tower_runs'))} x",
        ),
    ]
    return facts if summary else []


def _count(value: object) -> str:
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


def _phases(saved: Saved) -> list[tuple[str, float, float]]:
    """(phase, seconds, share of the total), what no phase accounts for included."""
    seconds = section(saved.summary, "seconds")
    total = number(seconds.get("total"))
    if not total:
        return []
    known = {name: number(seconds.get(name)) or 0.0 for name in ("sample", "update", "evaluate")}
    known["loading, scoring, saving"] = max(0.0, total - sum(known.values()))
    return [(name, value, value / total) for name, value in known.items()]


def _losses(saved: Saved) -> list[tuple[str, int, list[str]]]:
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


STEP_COLUMNS = (
    "step", "lr", "loss", "grad_norm", "majority_share", "margin", "unparsed", "unanimous", "length_mean",
    "entropy_mean", "entropy_forks", "band_low", "band_high", "selected_share", "parity_max", "tokens_sampled",
)  # fmt: skip


def _step_table(saved: Saved) -> dict[str, Any]:
    """steps.jsonl as text, every `every`-th step of it."""
    every = -(-len(saved.steps) // STEP_ROWS) or 1
    rows = [[_cell(number(row.get(name))) for name in STEP_COLUMNS] for row in saved.steps[::every]]
    return {"columns": STEP_COLUMNS, "rows": rows, "every": every, "thinned": every > 1}


def _breakdowns(split: headline.Split) -> dict[str, list[tuple[str, str, list[str]]]]:
    """Tag -> (value, questions, "before → after" in percent of each measure)."""
    before, after = section(split.breakdown, "before"), section(split.breakdown, "after")
    table: dict[str, list[tuple[str, str, list[str]]]] = {}
    for tag in after or before:
        old, new = section(before, tag), section(after, tag)
        table[tag] = [
            (value, _count(section(new, value).get("n", section(old, value).get("n"))), _pairs(old, new, value))
            for value in dict.fromkeys((*old, *new))
        ]
    return table


def _pairs(old: Row, new: Row, value: str) -> list[str]:
    names = headline.LABELS
    return [compare.shown_pair((number(section(old, value).get(n)), number(section(new, value).get(n)))) for n in names]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def _named(runs: Sequence[Path]) -> Iterator[tuple[str, Saved]]:
    """The runs that can be read, by method; with their seeds, and their folders where that is not enough."""
    saves = [saved for path in runs if (saved := _readable(path)) is not None]
    seeds = {saved.summary.get("seed", saved.config.get("seed")) for saved in saves}
    names = [saved.name + (f", seed {saved.summary.get('seed', '?')}" if len(seeds) > 1 else "") for saved in saves]
    for name, saved in zip(names, saves, strict=True):
        yield (f"{name} ({saved.path.name})" if names.count(name) > 1 else name), saved


def _readable(path: Path) -> Saved | None:
    try:
        return read_run(path)
    except ValueError:  # the table says so
        return None


def _comparison(lines: Sequence[compare.Row], charts: Sequence[curves.Chart], runs: Sequence[tuple[str, Saved]]) -> str:
    compared = [row for row in lines if row.split]
    with figures.style():
        drawn = [_drawn_chart(chart, None) for chart in charts]
    about = f"{compared[0].benchmark}, {compared[0].model}" if compared else "no finished run"
    return _template("compare.html.j2").render(
        _common(f"{len(runs)} runs compared"),
        about=about,
        sections=[(name, [row for row in compared if row.split == name]) for name in compare.SPLITS],
        notes=compare.notes(lines),
        maj=compare.maj_header(compared),
        first=compared[0].method if compared else "",
        drawn=drawn,
        pair=compare.shown_pair,
        gain=compare.shown_gain,
        seed=compare.shown_seed,
    )


def _template(name: str) -> Any:
    pages = Environment(
        loader=PackageLoader("mm_spine.reporting", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "percent": headline.percent,
        "interval": _bounds,
        "signed": _signed,
        "visible": _visible,
        "voted": _voted,
    }
    return pages.get_template(name)


def _bounds(value: Interval | None) -> str:
    if value is None or value.low is None or value.high is None:
        return ""
    return f"[{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _signed(value: Interval) -> str:
    return "" if value.low is None or value.high is None else f"[{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def _voted(side: Mapping[str, Any]) -> str:
    vote = "none" if side["vote"] is None else tokens.shortened(side["vote"], 40, 20)
    return f"{vote} {side['votes']}/{side['samples']}"


def _visible(text: str) -> str:
    """A token's spaces, line ends and tabs as signs that can be seen."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def _common(title: str) -> dict[str, Any]:
    """What both pages need: the style, the script, and the policy that lets this script run and nothing load."""
    folder = Path(__file__).parent / "pages"
    css, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return {"title": title, "css": Markup(css), "script": Markup(script), "policy": policy}


def _write(path: Path, text: str) -> Path:
    """Replace `path` as a whole. Lone surrogates, which no file can hold, become question marks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(text.encode("utf-8", "replace"))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path
