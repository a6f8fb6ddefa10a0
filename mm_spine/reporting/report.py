"""Write report.html of a run, and the page of a comparison, from the files of the runs alone.

Each page is one file that loads nothing. Text from the runs' files is escaped, whatever it looks like.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from mm_spine.files import write_bytes
from mm_spine.measures import COMPARED, LABELS
from mm_spine.reporting import compare, curves, entropy_colours, figures, overview
from mm_spine.reporting.changed_questions import Direction, shown_directions
from mm_spine.reporting.finished_run import SPLITS
from mm_spine.reporting.formats import count
from mm_spine.reporting.page import frame, load_template, write_page
from mm_spine.reporting.result import SplitResult, sentences, split_results
from mm_spine.reporting.saved_run import SavedRun, attempt, is_inside, read_run, section
from mm_spine.reporting.token_entropy import EntropyCounts, count_by_entropy
from mm_spine.reporting.token_text import load_tokenizer, token_texts
from mm_spine.words import visible_line


class PageFigure(NamedTuple):
    """A figure as a page holds it.

    Attributes:
        data: what the page reads out under the pointer; None for a figure that is not over steps.
        png: the figure as a file, empty where no file is written.
    """

    name: str
    title: str
    note: str
    svg: Markup
    data: Mapping[str, Any] | None = None
    png: bytes = b""


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write figures/*.png and report.html of the run in `run`, or only the page, to `output`. Return the page's path.

    A file that is absent or damaged is named on the page. Raises ValueError when `run` holds no run or when `output`
    is a folder.
    """
    saved = read_run(run)
    if output is not None and output.is_dir():
        raise ValueError(
            f"--output {output}: a folder; give the name of the page in it, as in {output / 'report.html'}"
        )
    text = render_report(saved, None if output else run / "figures")
    return write_page(output or run / "report.html", text)


def write_comparison(runs: Sequence[Path], output: Path) -> Path:
    """Write the comparison of several runs to `output`: table and curves to .html, only the curves to .png.

    Raises ValueError for another suffix, for runs that cannot be compared, and for a PNG when no run has steps.
    """
    if output.suffix not in (".html", ".png"):
        raise ValueError(f"--output {output}: give a name that ends in .html (table and curves) or .png (curves)")
    rows = compare.comparison_rows(runs)
    charts = list(curves.overlaid(list(_named_runs(runs))))
    if output.suffix == ".html":
        return write_page(output, _render_comparison(rows, charts, len(runs)))
    if not charts:
        raise ValueError(f"--output {output}: none of these runs has a steps.jsonl, so there is no curve to draw")
    with figures.style():
        return write_bytes(output, figures.png(figures.draw_panels(charts)))


def render_report(saved: SavedRun, figures_folder: Path | None = None) -> str:
    """Return the page of one run; with `figures_folder`, also write each figure there as PNG."""
    missing = list(saved.missing)
    splits = split_results(saved)
    entropy = attempt(lambda: count_by_entropy(saved.rollouts), missing)
    if figures_folder is not None and figures_folder.exists() and not is_inside(figures_folder, saved.path):
        missing.append("figures/ points out of the folder; no PNG was written.")
        figures_folder = None
    with figures.style():
        drawn = {figure.name: figure for figure in _draw_all(saved, splits, entropy, figures_folder, missing)}
    tokenizer = load_tokenizer(saved.path)
    directions = shown_directions(saved, tokenizer, missing)
    missing += _absent_folders(saved, tokenizer, directions)
    benchmark = saved.summary.get("benchmark") or saved.config.get("benchmark") or "an unknown benchmark"
    return load_template("report.html.j2").render(
        frame(f"{saved.name} on {benchmark}"),
        **_run_part(saved),
        **_token_part(entropy, tokenizer),
        splits=[(split, list(sentences(split))) for split in splits],
        measures=[LABELS[key] for key in COMPARED],
        breakdowns=overview.breakdowns,
        external=overview.external_scores(saved),
        drawn=drawn,
        per_question=saved.config.get("scope") == "question",
        processes=overview.process_count(saved),
        timing=curves.TIMING,
        directions=directions,
        evaluated=bool(saved.before and saved.after),
        labelled=any(line["greedy"] is not None for line in saved.after),
        left_out=overview.left_out(saved),
        finished=bool(saved.summary),
        timed=bool(saved.timings),
        missing=missing,
        phases=overview.phases(saved),
        table=overview.step_table(saved),
    )


def _absent_folders(saved: SavedRun, tokenizer: Tokenizer | None, directions: Sequence[Direction]) -> Iterator[str]:
    if saved.rollouts and tokenizer is None:
        why = " (with scope: question no adapted model is kept)" if saved.config.get("scope") == "question" else ""
        yield (
            f"adapted/tokenizer.json is not in the folder{why}: tokens are shown by number, and responses without "
            "colour."
        )
    if not (saved.path / "images").is_dir() and any(direction.shown for direction in directions):
        switched_off = section(saved.config, "reporting").get("images") is False
        why = "reporting.images was false" if switched_off else "the questions have none, or an older version ran"
        yield f"images/ is not in the folder ({why}): no image is shown."


def _run_part(saved: SavedRun) -> dict[str, Any]:
    """Return what the template shows of the run itself: badges, cost and settings."""
    summary, config = saved.summary, saved.config
    about = []
    if "model" in summary:
        about.append(f"model {summary['model']}")
    if "seed" in config:
        about.append(f"seed {config['seed']}")
    if "steps" in summary:
        about.append(f"{count(summary['steps'])} steps")
    if votes := overview.votes(saved):
        about.append(votes)
    if config.get("limit"):
        about.append(f"limit {config['limit']}: only the first questions")
    return {
        "about": about,
        "badges": list(overview.badges(saved)),
        "facts": overview.facts(saved),
        "config": yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True) if config else "",
        "environment": json.dumps(saved.environment, indent=2, ensure_ascii=False) if saved.environment else "",
    }


def _token_part(entropy: EntropyCounts | None, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return what the template shows of tokens: the histogram's note, the table, and the legend of the colours."""
    full = entropy_colours.FULL
    legend = {"top": full, "marks": [(nats, nats / full, words) for nats, words in entropy_colours.MARKS]}
    if entropy is None:
        return {"entropy": None, "entropy_note": "", "selected_tokens": [], **legend}
    note = [f"Logarithmic counts over {entropy.read:,} of {entropy.steps:,} steps."]
    if entropy.threshold:
        low, middle, high = entropy.threshold
        note.append(
            f"Dashed: the lowest entropy selected in a response, {middle:.2f} nats at the median, shaded from "
            f"{low:.2f} (10 % of the responses) to {high:.2f} (90 %)."
        )
    else:
        note.append("No threshold: all tokens are selected, or not those of the highest entropy.")
    if entropy.branched:
        note.append("Tokens that branches of a tree share are counted in each branch.")
    return {
        "entropy": entropy,
        "entropy_note": " ".join(note),
        "selected_tokens": _selected_tokens(entropy, tokenizer),
        **legend,
    }


def _selected_tokens(entropy: EntropyCounts, tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    """Return the rows of the table of tokens; `length` is the bar's, as a share of the longest bar."""
    most = max((selected.count for selected in entropy.tokens), default=1)
    return [
        {
            **asdict(selected),
            "text": None if tokenizer is None else token_texts(tokenizer, [selected.token])[0],
            "length": selected.count / most,
        }
        for selected in entropy.tokens
    ]


def _draw_all(
    saved: SavedRun,
    splits: Sequence[SplitResult],
    entropy: EntropyCounts | None,
    folder: Path | None,
    missing: list[str],
) -> Iterator[PageFigure]:
    """Draw the figures of a run and write them to `folder`.

    A figure whose values cannot be drawn is left out, and `missing` says so.
    """
    png = folder is not None
    drawings = [partial(_draw_scores, split, png) for split in splits if split.known]
    charts = attempt(lambda: list(curves.charts(saved)), missing) or []
    drawings += [partial(_draw_chart, chart, png) for chart in charts]
    if entropy is not None:
        drawings.append(partial(_draw_entropy, entropy, png))
    for drawing in drawings:
        drawn = attempt(drawing, missing)
        if drawn is None:
            continue
        if folder is not None:
            write_bytes(folder / f"{drawn.name}.png", drawn.png)
        yield drawn


def _draw_scores(split: SplitResult, png: bool) -> PageFigure:
    description = f"{split.title}, before and after, with 95 % intervals; the table has the values"
    return _page_figure(f"scores_{split.name}", split.title, figures.draw_scores(split), description, png)


def _draw_entropy(entropy: EntropyCounts, png: bool) -> PageFigure:
    figure, description = figures.draw_entropy(entropy), figures.describe_entropy(entropy)
    return _page_figure("entropy_histogram", "Entropy of all tokens", figure, description, png)


def _draw_chart(chart: curves.Chart, png: bool) -> PageFigure:
    figure = figures.draw_chart(chart)
    drawn = _page_figure(chart.name, chart.heading, figure, figures.describe_chart(chart), png)
    lines = [
        {"label": line.label, "x": line.x, "y": [float(f"{value:.4g}") for value in line.y]}
        for line in (*chart.series, *(chart.band or ()))
    ]
    unit = "%" if chart.scale == "share" else chart.unit
    return drawn._replace(note=chart.note, data={**figures.axes_frame(figure), "unit": unit, "lines": lines})


def _page_figure(name: str, title: str, figure: Figure, description: str, png: bool) -> PageFigure:
    svg = Markup(figures.svg(figure, name, description))
    return PageFigure(name, title, "", svg, png=figures.png(figure, title) if png else b"")


def _named_runs(paths: Sequence[Path]) -> Iterator[tuple[str, SavedRun]]:
    """Yield the runs that can be read with their names: the method, the seed if seeds differ, the folder if needed."""
    runs = []
    for path in paths:
        try:
            runs.append(read_run(path))
        except ValueError:  # the table has a row that says why
            continue
    seeds = [run.summary.get("seed", run.config.get("seed")) for run in runs]
    names = [run.name for run in runs]
    if len(set(map(str, seeds))) > 1:
        names = [f"{name}, seed {seed}" for name, seed in zip(names, seeds, strict=True)]
    for name, run in zip(names, runs, strict=True):
        yield (f"{name} ({visible_line(run.path.name)})" if names.count(name) > 1 else name), run


def _render_comparison(rows: Sequence[compare.ComparisonRow], charts: Sequence[curves.Chart], runs: int) -> str:
    compared = [row for row in rows if row.split]
    sections = [(title, [row for row in compared if row.split == split]) for split, title in SPLITS.items()]
    with figures.style():
        drawn = [_draw_chart(chart, False) for chart in charts]
    return load_template("compare.html.j2").render(
        frame(f"{runs} runs compared"),
        about=f"{compared[0].benchmark}, {compared[0].model}" if compared else "no finished run",
        sections=[(title, of_split) for title, of_split in sections if of_split],
        notes=compare.comparison_notes(rows),
        majority=compare.majority_header(compared),
        first=compare.first_method(compared),
        drawn=drawn,
    )
