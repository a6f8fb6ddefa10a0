"""Search for ways past the starting vote on `digits`: rules of voting, then training on what they say.

    python scripts/study/past_vote.py [--only GLOB] [--report-only] [--output DIR] [--results DIR]

Three stages, each resumable: pseudo-labels of every rule on `tune`, cells on `tune` that train on the promising ones,
and the one table on `adapt` and `held_out` for what was chosen on `tune` (`CHOSEN`). A cell is finished when its
summary.json exists. Cells of `main` are those of `scripts/study_digits.sh` and are taken over where they are finished.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from cells import BASE, COMMON, Cell, digits_config
from joint_votes import Joint
from past_vote_labels import LABELS_FILE, QUESTIONS, Rule, compare_rules, make_labels, register
from run_cells import OUTPUT, RESULTS, Task, perform
from transformers.utils.logging import disable_progress_bar

from mm_spine.benchmarks import digits
from mm_spine.config import RunConfig
from mm_spine.files import read_json, write_json
from mm_spine.policy.model import Policy
from mm_spine.types import AnswerKey

log = logging.getLogger("past_vote")

COMMAND = "python scripts/study/past_vote.py"


# --- The cells ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A way to train: a row of the table of methods with options, or `pseudo` with the labels of a rule."""

    method: str
    overrides: tuple[str, ...] = ()
    rule: str | None = None


RULES: Mapping[str, Rule] = {
    "vote-64": Rule(64),
    "joint-16": Rule(16, Joint()),
    "revote-64": Rule(64, after="ttrl"),
}
ARMS: Mapping[str, Arm] = {
    "ttrl": Arm("ttrl"),
    "spine": Arm("spine"),
    "votes-64": Arm("ttrl", ("sampling.votes=64",)),
    "share": Arm("ttrv"),
    "fixed-64": Arm("pseudo", rule="vote-64"),
    "joint": Arm("pseudo", rule="joint-16"),
    "joint-reading": Arm("pseudo", ("method.reading_weight=1",), "joint-16"),
    "revote": Arm("pseudo", rule="revote-64"),
}

SEEDS = 8
"""Seeds of the one table."""
DRAWN_SEEDS = 3
"""Seeds on which the rules are compared on `tune`."""
REFERENCES = ("spine", "ttrl")
CHOSEN: Mapping[str, tuple[str, int | None]] = {
    "joint-reading-36": ("joint-reading", 36),
    "votes-64": ("votes-64", None),
}
"""Name in the one table -> its arm and its steps (None: the default), chosen on `tune` before the table was run."""
TRIALS: Sequence[tuple[str, int | None]] = (
    *((arm, None) for arm in ("ttrl", "spine", "votes-64", "share", "fixed-64", "revote", "joint", "joint-reading")),
    *((arm, 36) for arm in ("ttrl", "joint", "joint-reading")),
)
"""The arms that were trained on `tune`, and their steps (None: the default)."""
TRIAL_SEEDS = 2
LARGE = "vote-64"
"""The rule whose labels show what a larger vote of the start is worth."""


@dataclass(frozen=True)
class PastCell(Cell):
    """A cell of this study, which trains `arm` on the questions of `split`."""

    arm: str = BASE
    split: str = "tune"

    @property
    def rule(self) -> str | None:
        return None if self.arm == BASE else ARMS[self.arm].rule

    def config(self, output: Path) -> RunConfig:
        arm = Arm(BASE) if self.arm == BASE else ARMS[self.arm]
        shared = self.before is not None and (output / self.before / "summary.json").is_file()
        before = [f"evaluation.before={output / str(self.before)}"] if shared else []
        name = None if arm.rule is None else labels_name(self.split, arm.rule, self.seed)
        labels = [] if name is None else [f"method.labels={output / name}"]
        return digits_config([*COMMON, *arm.overrides, *labels, *self.overrides, *before], arm.method, self.seed)


def labels_name(split: str, rule: str, seed: int) -> str:
    return f"labels/{split}/{rule}/seed_{seed}"


def votes_name(seed: int) -> str:
    return f"votes/seed_{seed}.json"


def tune_cell(arm: str, seed: int, steps: int | None = None) -> PastCell:
    """Return a cell on `tune`, whose other half has no part in this study."""
    group = "tune" if steps is None else f"tune-{steps}"
    overrides = ("split=tune", f"limit={QUESTIONS}", *(() if steps is None else (f"optim.steps={steps}",)))
    return PastCell(group, arm, seed, overrides, None if arm == BASE else f"tune/{BASE}/seed_{seed}", arm=arm)


def table_cell(label: str, seed: int) -> Cell:
    """Return a cell of the one table. The start and the references are cells of the study of `digits`."""
    before = None if label == BASE else f"main/{BASE}/seed_{seed}"
    if label not in CHOSEN:
        return Cell("main", label, seed, (), before)
    arm, steps = CHOSEN[label]
    overrides = () if steps is None else (f"optim.steps={steps}",)
    return PastCell("past", label, seed, overrides, before, arm=arm, split="adapt")


# --- Running them ---------------------------------------------------------------------------------------------------


@cache
def key_of(split: str) -> AnswerKey:
    """Return the gold answers of a split. They are read after everything else."""
    return digits.load(split).key


def graded_labels(folder: Path, split: str) -> dict[str, float] | None:
    """Return question id -> whether its pseudo-label is right, 1 or 0; None where there are none yet."""
    path = folder / LABELS_FILE
    if not path.is_file():
        return None
    key = key_of(split)
    return {name: float(label["answer"] == key[name][0]) for name, label in read_json(path).items()}


def ensure_labels(split: str, name: str, seed: int, output: Path) -> None:
    """Make the pseudo-labels of a rule unless they exist."""
    path = output / labels_name(split, name, seed) / LABELS_FILE
    if path.is_file():
        return
    rule, questions = RULES[name], digits.load(split).questions[:QUESTIONS]
    policies = [Policy.load(digits.MODEL_DIR)]
    if rule.after is not None:
        # Labels of a second round: the first one's model of the same seed draws too.
        before = tune_cell(rule.after, seed) if split == "tune" else table_cell(rule.after, seed)
        policies.append(Policy.load(output / before.name / "adapted"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, make_labels(rule, policies, questions, seed))


def ensure_votes(seed: int, output: Path) -> None:
    """Measure every rule's pseudo-labels on `tune` unless that was done."""
    path = output / votes_name(seed)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, compare_rules(Policy.load(digits.MODEL_DIR), digits.load("tune"), seed))


def run_cell(cell: Cell, output: Path) -> None:
    """Run a cell unless it is finished, with the labels that it needs. Raises RuntimeError where it failed."""
    if (output / cell.name / "summary.json").is_file():
        return
    if isinstance(cell, PastCell) and cell.rule is not None:
        ensure_labels(cell.split, cell.rule, cell.seed, output)
    started = time.monotonic()
    reason = perform(Task(cell.name, cell.needs, cell), output)
    log.info("%s: %s, %.0f s", cell.name, reason or "done", time.monotonic() - started)
    if reason is not None:
        raise RuntimeError(f"{cell.name}: {reason}")


def stages(output: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """List what is to be done in order: (name, what does it)."""
    for seed in range(DRAWN_SEEDS):
        yield f"votes/seed_{seed}", partial(ensure_votes, seed, output)
    for seed in range(TRIAL_SEEDS):
        for arm, steps in ((BASE, None), *TRIALS):
            cell = tune_cell(arm, seed, steps)
            yield cell.name, partial(run_cell, cell, output)
    for seed in range(SEEDS):
        for label in (BASE, *REFERENCES, *CHOSEN):
            cell = table_cell(label, seed)
            yield cell.name, partial(run_cell, cell, output)
        for split in ("adapt", "held_out"):
            yield labels_name(split, LARGE, seed), partial(ensure_labels, split, LARGE, seed, output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is left of the stages that match, then write the page."""
    parser = argparse.ArgumentParser(description="Search for ways past the starting vote on digits.")
    parser.add_argument("--only", action="append", metavar="GLOB", help="stages by name, e.g. 'past/*'")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the page")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the cells (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    disable_progress_bar()
    torch.set_num_threads(1)
    register()
    for name, do in stages(options.output.resolve()):
        if not options.report_only and any(fnmatch.fnmatch(name, glob) for glob in options.only or ["*"]):
            do()
    # Imported here: the page imports this module.
    from past_vote_page import write_page

    log.info("page: %s", write_page(options.output.resolve(), options.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
