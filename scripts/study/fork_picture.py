"""Draw responses with their tokens shaded by entropy and the forking tokens underlined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_spine.files.rollout_table import read_rollout_table
from mm_spine.reporting.entropy_colours import MARKS, Token, shade
from mm_spine.reporting.token_text import load_tokenizer, token_texts

RESPONSES = 10
SHADE = "#3b82f6"
WIDTH, LINE, POINTS = 105, 0.30, 8.5
"""Characters of a line, inches from one line to the next, and the size of the type."""


def read_responses(run: Path, count: int = RESPONSES) -> list[list[Token]]:
    """Return the first rollout of each of the first `count` questions of a run's first step, token by token.

    Empty where the run has saved no rollouts, or no tokenizer.
    """
    path, tokenizer = run / "rollouts" / "step_000000.parquet", load_tokenizer(run)
    if tokenizer is None or not path.is_file():
        return []
    rows = read_rollout_table(path, ("question_id", "token_ids", "entropy", "selected")).to_pylist()
    first = {row["question_id"]: row for row in reversed(rows)}
    shown = [first[name] for name in dict.fromkeys(row["question_id"] for row in rows)][:count]
    return [
        [
            Token(text, float(entropy), bool(fork))
            for text, entropy, fork in zip(
                token_texts(tokenizer, row["token_ids"]), row["entropy"], row["selected"], strict=True
            )
        ]
        for row in shown
        if row["entropy"] is not None and row["selected"] is not None
    ]


def draw(responses: Sequence[Sequence[Token]], path: Path) -> None:
    """Draw a line per response, cut at WIDTH characters, with a legend below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = len(responses) + 2
    figure = plt.figure(figsize=(9, lines * LINE), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1, WIDTH + 1), ylim=(lines, 0))
    axes.axis("off")
    for y, response in enumerate(responses):
        _line(axes, response, y + 0.5)
    legend = [Token("entropy in nats: ", 0.0)]
    for nats, words in MARKS:
        legend += [Token(f" {nats:.2f} ", nats), Token(f" {words}   ", 0.0)]
    _line(axes, [*legend, Token("forking token", 0.0, True)], lines - 0.7)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _line(axes: Any, tokens: Sequence[Token], y: float) -> None:
    from matplotlib.patches import Rectangle

    x = 0
    for token in tokens:
        text = token.text.replace("\n", "↵")
        if x + len(text) > WIDTH:
            return
        strength = shade(token.entropy)
        axes.add_patch(Rectangle((x, y - 0.36), len(text), 0.72, facecolor=SHADE, alpha=strength, linewidth=0))
        if token.fork:
            axes.plot([x + (text[:1] == " "), x + len(text)], [y + 0.36, y + 0.36], color="black", linewidth=1.4)
        for place, letter in enumerate(text):
            axes.text(x + place + 0.5, y, letter, family="monospace", fontsize=POINTS, ha="center", va="center")
        x += len(text)
