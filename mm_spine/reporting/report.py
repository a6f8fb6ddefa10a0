"""report.html of a run, and the page of a comparison: one file each, from the files of the runs alone.

A page needs no network and asks for none: its policy (CSP) forbids every request, and runs no script but its own.
Everything that stands in a file is text here, whatever it looks like (jinja2 escapes it).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from mm_spine.reporting import colours, compare, curves, facts, figures, headline, page, questions, tokens
from mm_spine.reporting.folder import Saved, attempt, inside, read_run, replace_file, section


class Drawn(NamedTuple):
    """A figure as the page holds it; `data` is what it reads out under the pointer, None for one without steps."""

    name: str
    title: str
    note: str
    svg: Markup
    data: Mapping[str, Any] | None = None
    png: bytes = b""


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write figures/*.png and report.html of the run in `run`, or the page alone to `output`; returns its path.

    A part whose file is absent says so on the page. Raises ValueError when `run` holds no run.
    """
    saved = read_run(run)
    if output is not None and output.is_dir():
        raise ValueError(
            f"--output {output}: a folder; give the name of the page in it, as in {output / 'report.html'}"
        )
    text = render(saved, None if output else run / "figures")
    return page.write(output or run / "report.html", text)


def write_comparison(runs: Sequence[Path], output: Path) -> Path:
    """Write the table and the overlaid curves of several runs to `output`, .html, or the curves alone to .png.

    Raises ValueError for another suffix, for runs that `compare.rows` refuses, and for a PNG without a curve.
    """
    if output.suffix not in (".html", ".png"):
        raise ValueError(f"--output {output}: give a name that ends in .html (table and curves) or .png (curves)")
    lines = compare.rows(runs)
    charts = list(curves.overlaid(list(_named(runs))))
    if output.suffix == ".html":
        return page.write(output, _comparison(lines, charts, len(runs)))
    if not charts:
        raise ValueError(f"--output {output}: none of these runs has a steps.jsonl, so there is no curve to draw")
    with figures.style():
        return replace_file(output, figures.png(figures.panels(charts)))


def render(saved: Saved, figures_folder: Path | None = None) -> str:
    """The page of one run as text; with `figures_folder`, each figure is also written there as PNG."""
    missing = list(saved.missing)
    splits = headline.headline(saved)
    spread = attempt(lambda: tokens.spread(saved.rollouts), missing)
    if figures_folder is not None and figures_folder.exists() and not inside(figures_folder, saved.path):
        missing.append("figures/ points out of the folder; no PNG was written.")
        figures_folder = None
    with figures.style():
        drawn = {figure.name: figure for figure in _figures(saved, splits, spread, figures_folder, missing)}
    tokenizer = tokens.load_tokenizer(saved.path)
    changed = questions.directions(saved, tokenizer, missing)
    missing += _absent(saved, tokenizer, changed)
    benchmark = saved.summary.get("benchmark") or saved.config.get("benchmark") or "an unknown benchmark"
    return page.template("report.html.j2").render(
        page.common(f"{saved.name} on {benchmark}"),
        **_top(saved),
        **_token_part(spread, tokenizer),
        splits=[(split, list(headline.sentences(split))) for split in splits],
        measures=list(headline.LABELS.values()),
        breakdowns=facts.breakdowns,
        outside=facts.outside(saved),
        drawn=drawn,
        alone=saved.config.get("scope") == "question",
        ranks=facts.ranks(saved),
        timing=curves.TIMING,
        directions=changed,
        evaluated=bool(saved.before and saved.after),
        labelled=any(row["greedy"] is not None for row in saved.after),
        losses=facts.losses(saved),
        finished=bool(saved.summary),
        timed=bool(saved.timings),
        missing=missing,
        phases=facts.phases(saved),
        table=facts.step_table(saved),
    )


def _absent(saved: Saved, tokenizer: Tokenizer | None, changed: Sequence[questions.Direction]) -> Iterator[str]:
    if saved.rollouts and tokenizer is None:
        why = " (with scope: question no adapted model is kept)" if saved.config.get("scope") == "question" else ""
        yield (
            f"adapted/tokenizer.json is not in the folder{why}: tokens are shown by number, and responses without "
            "colour."
        )
    if not (saved.path / "images").is_dir() and any(part.shown for part in changed):
        off = section(saved.config, "reporting").get("images") is False
        why = "reporting.images was false" if off else "the questions have none, or an older run"
        yield f"images/ is not in the folder ({why}): no image is shown."


def _top(saved: Saved) -> dict[str, Any]:
    """What the run was, its stamps, its cost and its settings."""
    summary = saved.summary
    about = [f"model {summary['model']}"] if "model" in summary else []
    about += [f"seed {saved.config['seed']}"] if "seed" in saved.config else []
    about += [f"{facts.count(summary['steps'])} steps"] if "steps" in summary else []
    about += [votes] if (votes := facts.votes(saved)) else []
    about += [f"limit {saved.config['limit']}: the first questions alone"] if saved.config.get("limit") else []
    return {
        "about": about,
        "badges": list(facts.badges(saved)),
        "facts": facts.facts(saved),
        "config": yaml.safe_dump(dict(saved.config), sort_keys=False, allow_unicode=True) if saved.config else "",
        "environment": json.dumps(saved.environment, indent=2, ensure_ascii=False) if saved.environment else "",
    }


def _token_part(spread: tokens.Spread | None, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The histogram's words, the table of tokens, and what their colours mean."""
    legend = {"top": colours.FULL, "marks": [(nats, nats / colours.FULL, words) for nats, words in colours.MARKS]}
    if spread is None:
        return {"spread": None, "spread_note": "", "forks": [], **legend}
    note = [f"Logarithmic counts over {spread.read:,} of {spread.steps:,} steps."]
    if spread.threshold:
        low, middle, high = spread.threshold
        note.append(
            f"Dashed: the lowest entropy selected in a response, {middle:.2f} nats at the median, shaded from "
            f"{low:.2f} (10 % of the responses) to {high:.2f} (90 %)."
        )
    else:
        note.append("No threshold: what is selected are all tokens, or not those of the highest entropy.")
    if spread.branched:
        note.append("Tokens that branches of a tree share are counted in each of them.")
    return {"spread": spread, "spread_note": " ".join(note), "forks": _forks(spread, tokenizer), **legend}


def _forks(spread: tokens.Spread, tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    """The tokens with their text, None without a tokenizer, and the length of their bar as a share of the longest."""
    most = max((fork.count for fork in spread.forks), default=1)
    return [
        {
            **vars(fork),
            "text": None if tokenizer is None else tokens.pieces(tokenizer, [fork.token])[0],
            "length": fork.count / most,
        }
        for fork in spread.forks
    ]


def _figures(
    saved: Saved,
    splits: Sequence[headline.Split],
    spread: tokens.Spread | None,
    folder: Path | None,
    missing: list[str],
) -> Iterator[Drawn]:
    """The figures that can be drawn; values that none can hold cost theirs alone, and say so in `missing`."""
    png = folder is not None
    drawings = [partial(_drawn_scores, split, png) for split in splits if split.known]
    drawings += [partial(_drawn_chart, chart, png) for chart in attempt(lambda: [*curves.charts(saved)], missing) or ()]
    drawings += [partial(_drawn_spread, spread, png)] if spread is not None else []
    for drawing in drawings:
        if (drawn := attempt(drawing, missing)) is not None:
            if folder is not None:
                replace_file(folder / f"{drawn.name}.png", drawn.png)
            yield drawn


def _drawn_scores(split: headline.Split, png: bool) -> Drawn:
    words = f"{split.title}, before and after, with 95 % intervals; the table gives the figures"
    return _drawn(f"scores_{split.name}", split.title, figures.draw_scores(split), words, png)


def _drawn_spread(spread: tokens.Spread, png: bool) -> Drawn:
    return _drawn(
        "entropy_histogram", "Entropy of all tokens", figures.draw_spread(spread), figures.counted(spread), png
    )


def _drawn_chart(chart: curves.Chart, png: bool) -> Drawn:
    figure = figures.draw(chart)
    drawn = _drawn(chart.name, chart.heading, figure, figures.described(chart), png)
    lines = [
        {"label": line.label, "x": line.x, "y": [float(f"{value:.4g}") for value in line.y]}
        for line in (*chart.series, *(chart.band or ()))
    ]
    unit = "%" if chart.scale == "share" else chart.unit
    return drawn._replace(note=chart.note, data={**figures.frame(figure), "unit": unit, "lines": lines})


def _drawn(name: str, title: str, figure: Figure, words: str, png: bool) -> Drawn:
    svg = Markup(figures.svg(figure, name, words))
    return Drawn(name, title, "", svg, png=figures.png(figure, title) if png else b"")


def _named(runs: Sequence[Path]) -> Iterator[tuple[str, Saved]]:
    """The runs that can be read, by method; with their seeds, and their folders where that is not enough."""
    saves = [saved for path in runs if (saved := _readable(path)) is not None]
    seeds = [saved.summary.get("seed", saved.config.get("seed")) for saved in saves]
    several = len(set(map(str, seeds))) > 1
    names = [f"{saved.name}, seed {seed}" if several else saved.name for saved, seed in zip(saves, seeds, strict=True)]
    for name, saved in zip(names, saves, strict=True):
        yield (f"{name} ({saved.path.name})" if names.count(name) > 1 else name), saved


def _readable(path: Path) -> Saved | None:
    try:
        return read_run(path)
    except ValueError:  # the table says so
        return None


def _comparison(lines: Sequence[compare.Row], charts: Sequence[curves.Chart], runs: int) -> str:
    compared = [row for row in lines if row.split]
    with figures.style():
        drawn = [_drawn_chart(chart, False) for chart in charts]
    return page.template("compare.html.j2").render(
        page.common(f"{runs} runs compared"),
        about=f"{compared[0].benchmark}, {compared[0].model}" if compared else "no finished run",
        sections=[(name, rows) for name in compare.SPLITS if (rows := [row for row in compared if row.split == name])],
        notes=compare.notes(lines),
        maj=compare.maj_header(compared),
        first=compared[0].method if len({row.method for row in compared}) > 1 else "",
        drawn=drawn,
    )
