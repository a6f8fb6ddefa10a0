"""The guard: it notices without labels that a run gets worse, stops it, and takes the last steps back.

The starting model's evaluation has a vote on every question. Where that vote was sure, adapting should not change it:
in the runs of docs/results/guard.md that lost accuracy, sure votes were lost, and one answer spread over different
questions. Where a run gets better, more responses give the votes of the start; where it slowly gets worse, fewer do.
The guard holds each step's votes against the start's on the same questions, which costs no sampling. Samples may agree
more while the greedy answers get worse, so that these are asked once, at the end.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from mm_spine import distributed, files
from mm_spine.adapt import StepRecord
from mm_spine.config import GuardConfig, SamplingConfig
from mm_spine.config.sampling import DecodingConfig
from mm_spine.evaluation import Item
from mm_spine.evaluation.forecast import SURE
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import same
from mm_spine.runs.alarm import CALM, JUDGED, Alarm, GuardRecord, sentence
from mm_spine.runs.folder import RunFolder
from mm_spine.training.checkpoint import checkpoints, load_tensors, save_tensors, step_of
from mm_spine.types import Answer, AnswerSpec, Group
from mm_spine.voting import confident, representative

log = logging.getLogger(__name__)

T = TypeVar("T")

GUARD = "guard"
"""What a run was stopped by that the guard has stopped."""

HALF_WAY = 0.5
"""Weights may be gone back to if no signal had gone further than this towards its limit."""

LEAST_NATS = 0.1
"""Answers of less entropy than this have no spread that could be lost."""


class Start(NamedTuple):
    """What the starting model said of a question: greedy response, vote, whether it was sure, the share of the samples
    that gave it, votes by class, mean tokens, unparsed."""

    greedy: str
    vote: Answer
    sure: bool
    share: float
    counts: Mapping[str, int]
    length: float
    unparsed: float


@dataclass(frozen=True)
class Signals:
    """One line of guard.jsonl: a step against the start, on the questions of the step that the start has votes on.

    There are `questions` of these; `kept` of `sure` sure votes are still the winners; `agreement` is the rise of the
    share of responses that give the start's vote, None where they are not drawn as the start's samples were; `spread`
    is the entropy of all answers as a share of the start's; `unparsed` the rise of the share of responses without an
    answer, `length` the factor of the mean length. `good` is the newest state that may be gone back to, in steps done.
    """

    step: int
    questions: int
    sure: int
    kept: int
    spread: float
    unparsed: float
    length: float
    good: int = 0
    agreement: float | None = None


def starts(items: Iterable[Item]) -> dict[str, Start]:
    """Return what the starting model said of each adapted question on which anything voted. Reads no verdict."""
    found = {}
    for item in items:
        counts = Counter(name for name in item.classes if name is not None)
        if item.split == "adapted" and item.vote is not None:
            found[item.id] = Start(
                greedy=item.greedy_text,
                vote=item.vote,
                sure=confident(counts, SURE),
                share=unbiased_share(counts, len(item.classes)),
                counts=counts,
                length=sum(item.lengths) / len(item.lengths),
                unparsed=sum(item.unparsed) / len(item.unparsed),
            )
    return found


def drawn_alike(evaluation: DecodingConfig, sampling: SamplingConfig) -> bool:
    """Whether the responses of a step are drawn as the samples of an evaluation are.

    Less heat or a smaller nucleus makes samples agree more, a limit on tokens cuts some off, and the leaves of a tree
    or a vote that stops early are no independent draws: then the two shares cannot be compared.
    """
    same_settings = all(
        getattr(evaluation, name) == getattr(sampling, name) for name in ("temperature", "top_p", "max_new_tokens")
    )
    grown = sampling.tree is not None or sampling.regenerate is not None or bool(sampling.wordings)
    return same_settings and not grown and sampling.votes.stop == "never"


def unbiased_share(counts: Mapping[str, int], samples: int) -> float:
    """Estimate the share of further samples that will give the answer that `samples` of them elected, in [0, 1].

    The share among these samples is too high: each of them helped to elect what it is compared with. A sample counts
    where the others elect its answer without it. Half of the ties go each way.
    """
    first, second = ([*sorted(counts.values(), reverse=True), 0, 0])[:2]
    lead = first - second
    return first / samples * (1.0 if lead > 1 else 0.5 if lead == 1 else 0.0)


def entropy(counts: Mapping[str, int]) -> float:
    """Return the entropy in nats of answers counted over all questions."""
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values()) if total else 0.0


def measure(record: StepRecord, start: Mapping[str, Start]) -> Signals:
    """Hold a step's votes against the start's; where the start has none on its questions, nothing has changed."""
    report = record.report
    known = [(group, start[group.question.id]) for group in record.groups if group.question.id in start]
    if not known:
        return Signals(report.step, questions=0, sure=0, kept=0, spread=1.0, unparsed=0.0, length=1.0)
    sure = [(group, was) for group, was in known if was.sure]
    now, before = (
        entropy(sum((Counter(counts) for counts in of_all), Counter()))
        for of_all in ([group.vote.counts for group, _ in known], [was.counts for _, was in known])
    )
    return Signals(
        step=report.step,
        questions=len(known),
        sure=len(sure),
        kept=sum(same_vote(winner_of(group), was.vote, group.question.spec) for group, was in sure),
        spread=now / before if before > LEAST_NATS else 1.0,
        unparsed=report.unparsed - sum(was.unparsed for _, was in known) / len(known),
        length=report.length_mean / max(1.0, sum(was.length for _, was in known) / len(known)),
        agreement=sum(share_of(group, was.vote) - was.share for group, was in known) / len(known),
    )


def share_of(group: Group, answer: Answer) -> float:
    """Return the share of a group's rollouts, all that voted and all that did not, that give `answer`."""
    vote, spec = group.vote, group.question.spec
    for name, count in vote.counts.items():
        if same_vote(representative(group.parsed, group.answers, name), answer, spec):
            return vote.share * count / vote.counts[vote.answer or name]
    return 0.0


def winner_of(group: Group) -> Answer | None:
    """Return the answer that the group's vote elected."""
    return representative(group.parsed, group.answers, group.vote.answer)


def same_vote(a: Answer | None, b: Answer | None, spec: AnswerSpec) -> bool:
    """Whether two votes on a question elected the same answer, or both none."""
    return a == b or (a is not None and b is not None and (a.text == b.text or same(a, b, spec)))


def readings(history: Sequence[Signals], limits: GuardConfig) -> Iterator[tuple[Alarm, float]]:
    """Yield each signal of the newest steps that enough was seen of, and how far it has gone: 1 is at its limit."""
    recent = window(history, "sure", limits.sure_votes)
    sure = sum(signals.sure for signals in recent)
    if sure >= limits.sure_votes:
        kept = sum(signals.kept for signals in recent) / sure
        yield Alarm("kept", kept, limits.kept), _lost(kept, limits.kept)
    fall, asked = fallen(history, limits)
    if asked >= limits.agreement_over:
        yield Alarm("agreement", fall, limits.agreement), fall / limits.agreement
    recent = window(history, "questions", limits.questions)
    if sum(signals.questions for signals in recent) < limits.questions:
        return
    spread, unparsed, length = (
        sum(getattr(signals, name) for signals in recent) / len(recent) for name in ("spread", "unparsed", "length")
    )
    yield Alarm("spread", spread, limits.spread), _lost(spread, limits.spread)
    yield Alarm("unparsed", unparsed, limits.unparsed), unparsed / limits.unparsed
    far = abs(math.log(max(length, 1e-9))) / math.log(limits.length)
    yield Alarm("length", length, limits.length), far


def fallen(history: Sequence[Signals], limits: GuardConfig) -> tuple[float, int]:
    """Return how far the agreement with the start's votes has fallen in the newest steps, and over how many questions.

    Below 0 it has risen. The steps are those that have `agreement_over` questions, all if they have fewer.
    """
    recent = window([s for s in history if s.agreement is not None], "questions", limits.agreement_over)
    asked = sum(signals.questions for signals in recent)
    rise = sum((signals.agreement or 0.0) * signals.questions for signals in recent)
    return (-rise / asked if asked else 0.0), asked


def _lost(share: float, limit: float) -> float:
    return (1 - share) / (1 - limit) if limit < 1 else math.inf if share < 1 else 0.0


def judge(history: Sequence[Signals], limits: GuardConfig) -> Alarm | None:
    """Return the first signal that is past its limit, None where there is none."""
    return next((alarm for alarm, gone in readings(history, limits) if gone > 1), None)


def is_good(history: Sequence[Signals], limits: GuardConfig) -> bool:
    """Whether something can be judged, nothing has gone more than half of the way to its limit, and the agreement with
    the start's votes has not fallen: towards these votes the run adapts."""
    found = [gone for _, gone in readings(history, limits)]
    return bool(found) and max(found) <= HALF_WAY and fallen(history, limits)[0] <= 0


def window(history: Sequence[T], count: str, least: int) -> Sequence[T]:
    """Return the newest steps, two at least, whose `count` adds up to `least`; all if they have fewer."""
    first, seen = len(history), 0
    while first and (seen < least or len(history) - first < 2):
        first -= 1
        seen += getattr(history[first], count)
    return history[first:]


def lines_so_far(lines: files.JsonLines, folder: RunFolder, who: str) -> list[dict[str, Any]]:
    """Return on every rank the lines of the steps that `folder`, the run's, has done.

    Warns where some are absent or damaged: "the guard judges", or what else `who` is, "by what follows".
    """
    saved = lines.steps()[: folder.steps_done] if folder.writes else []
    if folder.writes and len(saved) < folder.steps_done:
        log.warning(
            "%s: lines of %d of %d steps can be read; %s by what follows",
            lines.path, len(saved), folder.steps_done, who,
        )  # fmt: skip
    return distributed.same_on_all(saved)


class Guard:
    """The guard of one run: what it has seen, the weights it may go back to, and what it did. Every rank has one."""

    def __init__(
        self, limits: GuardConfig, policy: Policy, items: Iterable[Item], folder: RunFolder, alike: bool
    ) -> None:
        """Go on after the steps that `folder`, the run's, has done; weights are kept in its `guard/`.

        `alike` says whether responses are drawn as `items`, the start's, were (`drawn_alike`).
        """
        self.limits, self.policy, self.alike = limits, policy, alike
        self.start = starts(items)
        self.log = files.JsonLines(folder.guard_file)
        self.weights = folder.guard_weights
        self.checkpoints = folder.checkpoints
        self.writes = folder.writes
        self.record = CALM
        self.history = [Signals(**line) for line in lines_so_far(self.log, folder, "the guard judges")]
        # Weights that ranks divide are whole on none of them, so that none can keep them.
        self.stops = limits.act == "stop" and not policy.partitioned
        if limits.act == "stop" and not self.stops:
            log.warning("guard.act=stop: ranks divide the weights, which cannot be taken back; the guard only warns")
        # The step in which the guard fired may be the last that was saved.
        self._judge()
        if self.stops and not folder.steps_done:
            self._keep(0)

    @property
    def stopped(self) -> bool:
        """Whether the run is to end, and to go on with the weights that `roll_back` restores."""
        return self.record["fired"] and self.stops

    @property
    def ends(self) -> str | None:
        """What the run is to be stopped by, None while it is not to be."""
        return GUARD if self.stopped else None

    def step(self, record: StepRecord) -> None:
        """Judge a step by its votes, and keep the weights that it made. Every rank must call this."""
        signals = measure(record, self.start)
        if not self.alike:
            signals = replace(signals, agreement=None)
        good = self._good_after(signals.step)
        if signals.step % self.limits.every == 0 and is_good([*self.history, signals], self.limits):
            good = signals.step
        self.history.append(replace(signals, good=good))
        if self.writes:
            self.log.append(self.history[-1])
        self._judge()
        if self.stops and not self.stopped and (signals.step + 1) % self.limits.every == 0:
            self._keep(signals.step + 1)

    def _judge(self) -> None:
        """Say so, once, where the newest steps have passed a limit."""
        if self.record["fired"] or not any(readings(self.history, self.limits)):
            return
        self.record = JUDGED
        alarm = judge(self.history, self.limits)
        if alarm is not None:
            self._fire(alarm, self.history[-1].step + 1)

    def finish(self, done: int, fall: Callable[[], float | None]) -> None:
        """Leave the policy with the weights that the run, of `done` steps, ends with. Every rank must call this.

        `fall` asks the policy greedily and returns how much smaller the share of the start's votes among the answers
        has become; None where too little was asked. Where it is past its limit, the last good weights are restored,
        and those of the start if these have lost as much.
        """
        if self.record["fired"] and not self.stops:
            return
        if self.stopped:
            self.roll_back()
        while self.record["rolled_back_to"] != 0 and (fell := fall()) is not None:
            if not self.record["fired"]:
                self.record = JUDGED
            if fell <= self.limits.greedy:
                return
            self._fire(Alarm("greedy", fell, self.limits.greedy), done)
            if not self.stops:
                return
            self.roll_back()

    def _fire(self, alarm: Alarm, done: int) -> None:
        """Record and say that a limit was passed after `done` steps.

        Where it is passed by weights that were restored, the start's take their place.
        """
        if self.record["fired"]:
            self.record = GuardRecord(**(self.record | {"rolled_back_to": 0}))
        else:
            back = self._good_after(done) if self.stops else None
            self.record = GuardRecord(
                fired=True, step=done, signal=alarm.signal, value=alarm.value, limit=alarm.limit,
                rolled_back_to=back, judged=True,
            )  # fmt: skip
        if self.writes:
            log.warning(sentence(self.record))

    def roll_back(self) -> None:
        """Set the weights to those of the last good step."""
        self.policy.restore(load_tensors(self.weights / _name(self.record["rolled_back_to"] or 0)))

    def _keep(self, done: int) -> None:
        """Write the weights after `done` steps; of the others keep those that this run or a resumed one may need."""
        if not self.writes:
            return
        with files.atomic(self.weights / _name(done)) as unfinished:
            save_tensors(unfinished, self.policy.trainable())
        resumed_at = [step_of(path) for path in checkpoints(self.checkpoints)]
        # The start's for `finish`, which may find the good ones no better.
        needed = {0, done, self._good_after(done), *map(self._good_after, resumed_at)}
        for path in self.weights.glob("step_*.safetensors"):
            if path.name not in {_name(each) for each in needed}:
                path.unlink()

    def _good_after(self, done: int) -> int:
        """Return the newest good state that was known after `done` steps."""
        return max((signals.good for signals in self.history if signals.step < done), default=0)


def _name(done: int) -> str:
    return f"step_{done:06d}.safetensors"
