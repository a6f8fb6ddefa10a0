"""When a run has settled: asking its questions again hardly changes a vote, so that further steps have little to add.

That is early stopping without labels. It costs no sampling: each step votes on its questions anyway, and a question
that comes up again is compared with its own vote of the last time. Votes of few samples change by chance as long as
they are narrow, so that a run of small steps does not settle before its votes have become sure.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from mm_spine import files
from mm_spine.adapt import StepRecord
from mm_spine.config import GuardConfig, RunConfig
from mm_spine.runs.folder import RunFolder
from mm_spine.runs.guard import lines_so_far, same_vote, window, winner_of
from mm_spine.types import Answer

log = logging.getLogger(__name__)

SETTLED = "settled"
"""What a run was stopped by whose votes have settled."""


@dataclass(frozen=True)
class Compared:
    """A step: how many of its questions the run had asked before, and how many of their votes have `changed` since."""

    step: int
    compared: int
    changed: int


class SettledRecord(TypedDict):
    """The entry `settled` of summary.json: after how many steps, by which votes, and a sentence that says so."""

    step: int
    compared: int
    changed: int
    limit: float
    sentence: str


def compare(record: StepRecord, last: Mapping[str, Answer | None]) -> tuple[Compared, dict[str, Answer | None]]:
    """Compare a step's votes with the last ones on the same questions. Returns the step's votes by question, too."""
    votes = {group.question.id: winner_of(group) for group in record.groups}
    specs = {group.question.id: group.question.spec for group in record.groups}
    again = [name for name in votes if name in last]
    changed = sum(not same_vote(votes[name], last[name], specs[name]) for name in again)
    return Compared(record.report.step, len(again), changed), votes


def settled(history: Sequence[Compared], limits: GuardConfig) -> SettledRecord | None:
    """Return the record of a run that has settled after the steps of `history`, None while it has not."""
    if limits.settle is None:
        return None
    recent = window(history, "compared", limits.settle_over)
    compared, changed = (sum(getattr(step, name) for step in recent) for name in ("compared", "changed"))
    if compared < limits.settle_over or changed > limits.settle * compared:
        return None
    done = history[-1].step + 1
    return SettledRecord(
        step=done, compared=compared, changed=changed, limit=limits.settle,
        sentence=f"The votes have settled after step {done}: of the newest {compared:,} on questions that were asked "
        f"before, {changed:,} changed ({changed / compared:.1%}, limit {limits.settle:.1%}).",
    )  # fmt: skip


class Settling:
    """The votes of one run, and whether they have settled. Every rank has one, and sees the same votes."""

    def __init__(self, limits: GuardConfig, folder: RunFolder) -> None:
        """Go on after the steps that `folder`, the run's, has done."""
        self.limits = limits
        self.log = files.JsonLines(folder.votes_file)
        self.writes = folder.writes
        self.history, self.last = list[Compared](), dict[str, Answer | None]()
        for line in lines_so_far(self.log, folder, "the votes settle"):
            votes: Mapping[str, Any] = line.pop("votes")
            self.history.append(Compared(**line))
            self.last |= {name: None if vote is None else Answer(*vote) for name, vote in votes.items()}
        # The run may have settled in the last step that was saved.
        self.record = settled(self.history, limits)

    @property
    def ends(self) -> str | None:
        """What the run is to be stopped by, None while it has not settled."""
        return None if self.record is None else SETTLED

    def step(self, record: StepRecord) -> None:
        """Compare a step's votes, and keep them. Every rank must call this."""
        found, votes = compare(record, self.last)
        self.history.append(found)
        self.last |= votes
        if self.writes:
            self.log.append(asdict(found) | {"votes": votes})
        self.record = settled(self.history, self.limits)
        if self.record is not None and self.writes:
            log.info(self.record["sentence"])


def warn_of_few_repeats(config: RunConfig, questions: int) -> None:
    """Warn where a run asks too few questions again for its votes to settle."""
    again = config.optim.steps * min(config.optim.questions_per_step, questions) - questions
    if again < config.guard.settle_over:
        log.warning(
            "guard.settle=%g: %d steps ask %d questions again, and %d are needed; nothing settles. Take more steps, "
            "or a smaller guard.settle_over",
            config.guard.settle, config.optim.steps, max(0, again), config.guard.settle_over,
        )  # fmt: skip
