"""Write report.html of a run, and its figures, from the files of the run alone.

The page is one file that loads nothing. Text from the run's files is escaped, whatever it looks like.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from mm_spine.measures import COMPARED, LABELS
from mm_spine.reporting import curves, entropy_colours, figures, overview
from mm_spine.reporting.changed_questions import Direction, shown_directions
from mm_spine.reporting.formats import count
from mm_spine.reporting.headline import headline
from mm_spine.reporting.page import frame, load_template, write_page
from mm_spine.reporting.page_figures import draw_all
from mm_spine.reporting.result import sentences, split_results
from mm_spine.reporting.saved_run import SavedRun, attempt, is_inside, last_part, read_run, section
from mm_spine.reporting.settings import settings_paragraph
from mm_spine.reporting.token_entropy import EntropyCounts, count_by_entropy
from mm_spine.reporting.token_text import load_tokenizer, token_texts
from mm_spine.reporting.turned import tables


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write figures/ and report.html of the run in `run`, or only the page, to `output`. Return the page's path.

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


def render_report(saved: SavedRun, figures_folder: Path | None = None) -> str:
    """Return the page of one run; with `figures_folder`, also write each figure and settings.tex there."""
    missing = list(saved.missing)
    splits = split_results(saved)
    entropy = attempt(lambda: count_by_entropy(saved.rollouts), missing)
    if figures_folder is not None and figures_folder.exists() and not is_inside(figures_folder, saved.path):
        missing.append("figures/ points out of the folder; no figure was written.")
        figures_folder = None
    with figures.style():
        drawn = {figure.name: figure for figure in draw_all(saved, splits, entropy, figures_folder, missing)}
    if figures_folder is not None and saved.config:
        write_page(figures_folder / "settings.tex", settings_paragraph(saved))
    tokenizer = load_tokenizer(saved.path)
    directions = shown_directions(saved, tokenizer, missing)
    missing += _absent_folders(saved, tokenizer, directions)
    name = f"{saved.name} on {saved.benchmark or 'an unknown benchmark'}"
    head = headline(saved, splits, name)
    return load_template("report.html.j2").render(
        frame(head.title),
        head=head,
        name=name,
        **_run_part(saved),
        **_token_part(entropy, tokenizer),
        splits=[(split, list(sentences(split))) for split in splits],
        measures=[LABELS[key] for key in COMPARED],
        turned_tables=tables,
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
    if not (saved.path / "images").is_dir() and directions:
        switched_off = section(saved.config, "reporting").get("images") is False
        why = "reporting.images was false" if switched_off else "the questions have none, or an older version ran"
        yield f"images/ is not in the folder ({why}): no image is shown."


def _run_part(saved: SavedRun) -> dict[str, Any]:
    """Return what the template shows of the run itself: badges, cost and settings."""
    summary, config = saved.summary, saved.config
    about = []
    if "model" in summary:
        about.append(f"model {last_part(str(summary['model']))}")
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
