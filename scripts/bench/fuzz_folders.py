"""Run the whole path on random folders of odd questions, and count what becomes of every row.

    python scripts/bench/fuzz_folders.py --seed 0 --count 300

Each folder is adapted to for two steps on the tiny model of the tests. A run must end with a summary or with one
sentence, never with a traceback. Each row of its tables must be asked before and after, skipped by name, or reported
as a bad row. Nothing that a terminal would act on may reach the log, the messages or summary.json.

The last line is JSON: how the folders ended, and what became of their rows. A folder is refused if no row of one of its
tables can be used; its rows are counted apart. The exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OURS = ("mm_spine", "processors", "benchmarks")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SKIPPED = re.compile(r"^\S+, (?:line|row) \d+ skipped: ")
REPORT_EVERY = 10
"""A report takes as long as the rest of such a run, so only every tenth run writes one."""

PROMPTS = (
    "Which digit?", "", "  \n", None, 3, ["a"], "Left <image> right <image> same?", "<image_2> then <image_1>?",
    "<image9>", "Say <|im_end|> now", "a <|image_pad|> b", "x\x1b[31mred\x07", "half \ud800 here", "word " * 3000,
    "\u202eright to left", "Zahl \U0001f9ee?", "{{ 7 * 7 }} {% raw %}", r"\boxed{12} \frac{1}{2}", "Is it even?",
    "哪个数字？", "\x00", "<img> and <IMAGE>", "a\r\nb", "A" * 1_000_001, "数" * 999_999,
)  # fmt: skip
IDS = (
    None, 7, "", "same", "same", "sur\ud800id", "line\nbreak", "esc\x1b[2J", "x" * 5000, "../../up", True, 1.5, [1],
    "nul\x00", "é", " ", "a/b", "\u2028", {"a": 1}, 10**30,
)  # fmt: skip
KINDS = ("integer", "text", "choice", "yes_no", "math", "medical", "vqa", "typed", "yes_no_maybe", "nonsense", 3, None)
CHOICES = (
    None, ["1", "2"], "1|2|3", [], ["a", ""], ["x"] * 30, [1, 2.5], ["\ud800", "b"], "one", [None], '["p", "q"]',
    [["a"]], {"A": "x"},
)  # fmt: skip
ANSWERS = (
    "1", 1, None, ["1", "2"], "", "A", "yes", {"a": 1}, 10**400, 1.5, "\ud800", True, "\\frac{1}{0}", "9^9^9^9", [],
    [None], "E",
)  # fmt: skip
IMAGES = (
    "good.png", "wide.png", "grey16.png", "rgba.png", "moving.gif", "absent.png", "torn.png", "empty.png", "text.png",
    "folder", "../secret.png", "/etc/passwd", "http://example.invalid/a.png", "thin.png", "", None, 3, [],
    ["good.png", "wide.png"], ["good.png", "torn.png"], {"path": "good.png"}, "good\x00.png", "x" * 400, "\ud800.png",
)  # fmt: skip
FIELDS = {"prompt": PROMPTS, "id": IDS, "kind": KINDS, "choices": CHOICES, "answer": ANSWERS, "image": IMAGES}
LINES = (b"{not json", b"[1, 2]", b"null", b"\xff\xfe", b'{"prompt": "a"', b"\xef\xbb\xbf{}", b"[" * 5000, b'"text"')
MORE = ("promt", "anwser", "imge", "note", "precision", "unit", "value_type", "ordered", "difficulty")


def write_images(folder: Path) -> None:
    """Write images of every kind, and files that are none."""
    (folder / "folder").mkdir()
    Image.new("RGB", (56, 28), "white").save(folder / "good.png")
    Image.new("RGB", (84, 28), "red").save(folder / "wide.png")
    Image.new("I;16", (28, 28), 40_000).save(folder / "grey16.png")
    Image.new("RGBA", (30, 31), (0, 0, 0, 0)).save(folder / "rgba.png")
    Image.new("L", (1, 400)).save(folder / "thin.png")
    frames = [Image.new("L", (28, 28), shade) for shade in (0, 255)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")


def odd_row(rng: random.Random) -> dict[str, Any]:
    """Return a row with an image in which up to three fields are drawn from the odd values."""
    row: dict[str, Any] = {"prompt": f"Which digit is number {rng.randrange(100)}?", "kind": "integer"}
    if rng.random() < 0.8:
        row["image"] = "good.png"
    if rng.random() < 0.5:
        row["answer"] = str(rng.randrange(10))
    for name in rng.sample(sorted(FIELDS), rng.choice((0, 1, 1, 2, 3))):
        row[name] = rng.choice(FIELDS[name])
    if rng.random() < 0.15:
        row[rng.choice(MORE)] = rng.choice(ANSWERS)
    if rng.random() < 0.05:
        del row["prompt"]
    return row


def write_folder(folder: Path, rng: random.Random) -> tuple[int, int]:
    """Write images, a table of random rows and sometimes a held-out one; return how many rows each has."""
    folder.mkdir()
    write_images(folder)
    rows = [odd_row(rng) for _ in range(rng.randint(1, 12))]
    form = rng.choice(("jsonl", "jsonl", "jsonl", "json", "csv", "tsv"))
    if rng.random() < 0.2:
        (folder / "columns.yaml").write_text(rng.choice(("tags: difficulty\n", "defaults:\n  kind: text\n")))
    held_out = [odd_row(rng) for _ in range(rng.choice((0, 0, 1, 3)))]
    if held_out:
        (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    if form == "json":
        (folder / "questions.json").write_text(json.dumps(rows))
    elif form in ("csv", "tsv"):
        write_cells(folder / f"questions.{form}", rows, "," if form == "csv" else "\t")
        # A row without any value is a blank line, which is no row.
        rows = [row for row in rows if any(value not in (None, "") for value in row.values())]
    else:
        lines = [json.dumps(row).encode() for row in rows]
        lines += [rng.choice(LINES) for _ in range(rng.choice((0, 0, 1, 2)))]
        rng.shuffle(lines)
        (folder / "questions.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        return len(lines), len(held_out)
    return len(rows), len(held_out)


def write_cells(path: Path, rows: list[dict[str, Any]], delimiter: str) -> None:
    """Write rows as a table of texts; NUL, which no such table can hold, is left out."""
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), delimiter=delimiter)
        writer.writeheader()
        for row in rows:
            cells = {name: "" if value is None else str(value).replace("\x00", "") for name, value in row.items()}
            if any(cells.values()):
                writer.writerow(cells)


def layer(data: Path, model: Path, seed: int) -> dict[str, Any]:
    """Return the settings of a run of two steps, by any method without labels."""
    from mm_spine.methods.table import METHODS

    rng = random.Random(f"settings {seed}")
    return {
        "benchmark": str(data),
        "model": {"path": str(model)},
        "method": {"name": rng.choice(sorted(name for name, method in METHODS.items() if method.label_free))},
        "scope": rng.choice(("dataset",) * 9 + ("question",)),
        "sampling": {"votes": 2, "train_rollouts": 2, "max_new_tokens": 4},
        "optim": {"steps": 2, "questions_per_step": 3, "lr": 0.0005},
        "evaluation": {"samples": 2, "max_new_tokens": 4},
        "seed": seed,
        "threads": 1,
    }


class Ended(NamedTuple):
    """How a folder ended ("run", "refused", "lost" or "traceback"), what was said, and what became of its rows."""

    how: str
    told: str = ""
    rows: Mapping[str, int] = {}


def account(output: Path, rows: int) -> Ended:
    """Hold the files of a finished run against the number of its rows."""
    summary = json.loads((output / "summary.json").read_text())
    before, after = (
        [(row["split"], row["id"]) for row in map(json.loads, (output / "evaluation" / f"{when}.jsonl").open())]
        for when in ("before", "after")
    )
    bad = [line for line in summary["bad_rows"] if SKIPPED.match(line)]
    found = {"rows": rows, "asked": len(before), "skipped": len(summary["skipped"]), "bad": len(bad)}
    problems = []
    if found["asked"] + found["skipped"] + found["bad"] != rows or len({*before}) != len(before):
        problems.append(f"not every row is accounted for: {found}")
    if before != after:
        problems.append("the questions asked before and after differ")
    texts = [*summary["bad_rows"], *summary["skipped"].values()]
    problems += [f"raw characters in {text[:80]!r}" for text in texts if CONTROL.search(text)]
    return Ended("lost", "; ".join(problems)) if problems else Ended("run", rows=found)


def one(seed: int, place: Path, model: Path) -> Ended:
    """Make a folder and run it."""
    from mm_spine.config import RunStopped
    from mm_spine.methods.table import configure
    from mm_spine.runs import run as runs

    data, output = place / f"data{seed}", place / f"run{seed}"
    adapted, held_out = write_folder(data, random.Random(seed))
    settings = layer(data, model, seed)
    # With scope=question no weights are left to ask the held-out questions with, so their table is not read.
    rows = adapted + (held_out if settings["scope"] == "dataset" else 0)
    usual = runs.Run._report
    try:
        if seed % REPORT_EVERY:
            runs.Run._report = lambda self, splits: None  # type: ignore[method-assign]
        runs.run(configure(settings), output)
        if seed % REPORT_EVERY == 0 and not (output / "report.html").is_file():
            return Ended("lost", "no report.html")
        return account(output, rows)
    except (RunStopped, ValueError, OSError) as error:
        # `mm-spine` prints the message. It is a sentence only if our own code raised it: another's is an accident.
        raised_by = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if isinstance(error, UnicodeError) or not any(raised_by.is_relative_to(ROOT / each) for each in OURS):
            return Ended("traceback", traceback.format_exc())
        if CONTROL.search(str(error)):
            return Ended("lost", f"raw characters in the message {error!r}")
        return Ended("refused", str(error), {"rows": rows, "of_refused": rows})
    except Exception:
        return Ended("traceback", traceback.format_exc())
    finally:
        runs.Run._report = usual  # type: ignore[method-assign]


class Lines(logging.Handler):
    """Keeps the lines of the log that hold what a terminal would act on."""

    def __init__(self) -> None:
        from mm_spine.commands.terminal import VisibleFormatter

        super().__init__()
        self.setFormatter(VisibleFormatter())
        self.raw: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if CONTROL.search(line) and record.exc_info is None:
            self.raw.append(line)


def fuzz(seed: int, count: int, place: Path, model: Path) -> Counter[str]:
    """Run `count` folders; print how each that was not run ended. Returns counts of folders and of rows."""
    from mm_spine.compat import quiet_logs

    ended, lines = Counter[str]({"lost": 0, "traceback": 0}), Lines()
    quiet_logs()
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(lines)
    root.setLevel(logging.INFO)
    try:
        for each in range(seed, seed + count):
            result = one(each, place, model)
            if result.how in ("run", "refused") and lines.raw:
                result = Ended("lost", f"raw characters in the log: {lines.raw[0]!r}")
            lines.raw.clear()
            ended.update({result.how: 1, **result.rows})
            if result.how != "run":
                print(f"seed {each}: {result.how}: {result.told}", flush=True)
    finally:
        root.removeHandler(lines)
        root.setLevel(level)
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    given = parser.parse_args()
    # The tiny model is the tests' own.
    sys.path.insert(0, str(ROOT / "tests"))
    from small import write_model

    with tempfile.TemporaryDirectory() as place:
        ended = fuzz(given.seed, given.count, Path(place), write_model(Path(place) / "model"))
    print(json.dumps({"seed": given.seed, "folders": given.count, **ended}))
    return int(bool(ended["lost"] or ended["traceback"]))


if __name__ == "__main__":
    sys.exit(main())
