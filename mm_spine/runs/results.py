"""What `mm_spine.adapt` and `mm_spine.evaluate` return: their results as pandas frames, and curves.

Pandas and matplotlib are imported where a frame or a figure is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

from mm_spine import evaluation
from mm_spine.adapt import Adapted
from mm_spine.config import ConfigError, RunConfig
from mm_spine.evaluation import Item, Metrics, answer_table, forecast
from mm_spine.evaluation.answer_table import AnswerChanges
from mm_spine.evaluation.turned import TurnedAnswers, turned_by_split
from mm_spine.files.rollout_table import ROLLOUT_SCHEMA
from mm_spine.methods.method import Method
from mm_spine.runs.listeners.listener import StepTiming
from mm_spine.runs.listeners.notebook import in_notebook
from mm_spine.runs.model_card import Base, Figures, of_python
from mm_spine.types import Question, StepReport

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

SPLIT = "adapted"
"""The split of the items of a result: a list of questions has no other."""

SHOWN = 10
"""Rows of a frame that a notebook shows below a result."""

NO_KEY = "no scores without gold answers: give them as key, or grade later with graded(key)"

Golds = Mapping[str, "str | int | float | Sequence[str]"]
"""Question id -> right answer, or a list of answers each of which is right."""


def answer_key(key: Golds, questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
    """Return the gold answers of `questions`. Ids of other questions are left out.

    Raises ValueError where the key has none of the questions, and for an answer that is not of its question's kind.
    """
    golds = {
        question.id: tuple(map(str, given)) if isinstance(given := key[question.id], list | tuple) else (str(given),)
        for question in questions
        if question.id in key
    }
    if not golds:
        raise ValueError(
            f"the key has none of the {len(questions)} questions: its keys must be their ids, such as "
            f"{questions[0].id!r}; found {next(iter(key), 'an empty key')!r}"
        )
    evaluation.check_key(questions, golds)
    return golds


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The responses of a model to questions: a greedy one and several samples of each, and their vote.

    `items` has one entry per question that could be asked; `skipped` maps the other ids to the reason.
    """

    questions: Sequence[Question]
    items: Sequence[Item]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> Metrics:
        """The metrics as in summary.json. Scores are None without a key."""
        return evaluation.metrics(self.items)

    @property
    def forecast(self) -> list[str]:
        """Sentences on whether adapting is worth trying, without labels, the verdict last; none below 4 samples."""
        found = forecast.forecast(self.questions, self.items)
        return [] if found is None else forecast.sentences(found)

    @property
    def answers(self) -> pd.DataFrame:
        """A row per question: `id`, `question`, greedy `answer`, the vote's answer `vote` and its `vote_share`, and of
        the samples' answers `answer_entropy` (nats) and `distinct_answers`.

        With a key also the scores of the question, in [0, 1]: `greedy`, `pass_at_1`, `maj_at_n`, `pass_at_n`, missing
        for questions without a gold answer.
        """
        import pandas as pd

        frame = pd.DataFrame(answer_table.rows_of_one(self.questions, self.items)).drop(columns="split")
        if self.labelled:
            for name, measure in evaluation.MEASURES.items():
                frame[name] = pd.array([measure(item) for item in self.items], dtype="Float64")
        return frame

    @property
    def responses(self) -> pd.DataFrame:
        """A row per sample: `id`, `sample`, `text`, `answer`, vote class `voted`, `tokens`, `entropy` (nats), `score`.

        The greedy response has the sample number -1, and neither class nor length nor entropy.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        greedy_rows = answer_table.rows_of_one(self.questions, self.items)
        for item, row in zip(self.items, greedy_rows, strict=True):
            score = item.greedy and item.greedy.score
            greedy = {"id": item.id, "sample": -1, "text": item.greedy_text, "answer": row["answer"] or None}
            rows.append({**greedy, "voted": None, "tokens": None, "entropy": None, "score": score})
            for i, text in enumerate(item.texts):
                answer = item.answers[i]
                sample = {"id": item.id, "sample": i, "text": text, "answer": answer and answer.text}
                counted = {"voted": item.classes[i], "tokens": item.lengths[i], "entropy": item.entropies[i]}
                rows.append({**sample, **counted, "score": item.verdicts and item.verdicts[i].score})
        return pd.DataFrame(rows)

    @property
    def scores(self) -> pd.DataFrame:
        """A row per measure: mean `score` in [0, 1], the bounds `low` and `high` of its 95 % interval, questions `n`.

        Raises ValueError without a key: `graded(key)` gives the same responses with scores.
        """
        import pandas as pd

        found: Mapping[str, Any] = self.metrics
        if not self.labelled:
            raise ValueError(NO_KEY)
        bounds = {name: found.get(f"{name}_ci95") or (None, None) for name in evaluation.MEASURES}
        rows = [[found[name], *bounds[name], found["n_labelled"]] for name in evaluation.MEASURES]
        return pd.DataFrame(rows, index=list(evaluation.MEASURES), columns=["score", "low", "high", "n"])

    @property
    def pass_at_k(self) -> pd.Series[float]:
        """The mean unbiased pass@k in [0, 1] by k, from 1 to the samples. Raises ValueError without a key."""
        import pandas as pd

        found = self.metrics["pass_at_k"]
        if found is None:
            raise ValueError(NO_KEY)
        return pd.Series(found, index=pd.RangeIndex(1, len(found) + 1, name="k"), name="pass_at_k")

    @property
    def labelled(self) -> bool:
        """Whether any question has a gold answer."""
        return any(item.verdicts is not None for item in self.items)

    def graded(self, key: Golds) -> EvaluationResult:
        """Return the same responses graded against `key` (question id -> right answer); nothing is sampled again."""
        golds = answer_key(key, self.questions)
        asked = {question.id: question for question in self.questions}
        items = [evaluation.graded_again(item, golds.get(item.id), asked[item.id]) for item in self.items]
        return replace(self, items=items)

    def since(self, before: EvaluationResult) -> pd.DataFrame:
        """Return what changed since `before`, a row per question, with the columns of answers.csv."""
        import pandas as pd

        return pd.DataFrame(map(asdict, self._pairs(before))).drop(columns="split")

    def changes(self, before: EvaluationResult) -> AnswerChanges:
        """Return how many greedy answers changed since `before`, and the mean vote shares."""
        return answer_table.changes_by_split(self._pairs(before))[SPLIT]

    def turned(self, before: EvaluationResult) -> TurnedAnswers:
        """Return how many questions were learnt and corrupted since `before`, by `greedy` answer and by `vote`, as in
        summary.json. Raises ValueError where no question has a gold answer in both."""
        found = turned_by_split(before.items, self.items)
        if not found:
            raise ValueError(NO_KEY)
        return found[SPLIT]

    def _pairs(self, before: EvaluationResult) -> list[answer_table.AnswerRow]:
        rows = answer_table.answer_rows(self.questions, before.items, self.items)
        if not rows:
            raise ValueError("the two evaluations have no question in common: give one of the same questions")
        return rows

    def __repr__(self) -> str:
        """Say how many questions were asked, and the scores or, without a key, how sure the votes are."""
        found = self.metrics
        parts = [f"{found['n']} questions"]
        if found["greedy"] is None:
            share = sum(map(answer_table.vote_share, self.items)) / len(self.items)
            parts.append(f"vote share {share:.2f}")
        else:
            low, high = found["greedy_ci95"] or (0.0, 0.0)
            parts.append(f"greedy {found['greedy']:.3f} [{low:.3f}, {high:.3f}]")
            parts.append(f"pass@1 {found['pass_at_1']:.3f}")
            parts.append(f"maj@N {found['maj_at_n']:.3f}")
        return f"EvaluationResult({', '.join(parts)}, unparsed {found['unparsed']:.2f})"

    def _repr_html_(self) -> str:
        return _as_html(repr(self), self.answers)


@dataclass(frozen=True, eq=False)
class AdaptationResult:
    """What an adaptation left behind. The weights are in the policy that was adapted.

    `ended` says how the loop ended, `config` and `method` what it ran with, `base` what was adapted. `before` and
    `after` are the evaluations around it, None where `adapt` was called with `answers=False`. After a signal `after` is
    None too.
    """

    questions: Sequence[Question]
    config: RunConfig
    method: Method
    base: Base
    ended: Adapted
    reports: Sequence[StepReport]
    timings: Sequence[StepTiming]
    tables: Sequence[pa.Table]
    before: EvaluationResult | None = None
    after: EvaluationResult | None = None

    @property
    def stopped_by(self) -> str:
        """What ended the loop: "steps", or the name of a signal."""
        return self.ended.stopped_by

    @property
    def steps(self) -> pd.DataFrame:
        """A row per step: the fields of steps.jsonl and timings.jsonl."""
        import pandas as pd

        names = list(StepReport.__dataclass_fields__)
        names += [name for name in StepTiming.__dataclass_fields__ if name != "step"]
        rows = [asdict(report) | asdict(timing) for report, timing in zip(self.reports, self.timings, strict=True)]
        return pd.DataFrame(rows, columns=names)

    @property
    def rollouts(self) -> pd.DataFrame:
        """A row per response that was trained on, with the columns of the files in rollouts/.

        Raises ConfigError where `reporting.rollouts` is false: none were kept.
        """
        import pandas as pd
        import pyarrow as pa

        if not self.config.reporting.rollouts:
            raise ConfigError("reporting.rollouts=false: no responses were kept; leave the key out to keep them")
        table = pa.concat_tables([ROLLOUT_SCHEMA.empty_table(), *self.tables])
        # Where only some responses have a parent, the indices of the others must not turn into floats.
        return table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype()}.get)

    @property
    def answers(self) -> pd.DataFrame:
        """A row per question, with the columns of answers.csv: the answers before and after, and what changed.

        Raises ValueError where there was no evaluation before or after.
        """
        before, after = self._both()
        return after.since(before)

    def _both(self) -> tuple[EvaluationResult, EvaluationResult]:
        if self.before is None:
            raise ValueError("adapt(..., answers=False) asked for no answers; leave answers out")
        if self.after is None:
            raise ValueError(
                f"stopped by {self.stopped_by} before the last evaluation; "
                "for the answers now: evaluate(questions, policy).since(result.before)"
            )
        return self.before, self.after

    def graded(self, key: Golds) -> AdaptationResult:
        """Return this result with both evaluations graded against `key`; nothing is sampled again.

        Raises ValueError where there was no evaluation before or after.
        """
        before, after = self._both()
        return replace(self, before=before.graded(key), after=after.graded(key))

    @property
    def card(self) -> str:
        """The model card: with scores for a `graded` result, else with what changed."""
        figures = Figures(None, None, None)
        if self.before is not None and self.after is not None:
            figures = Figures(self.before.metrics, self.after.metrics, self.after.changes(self.before))
        return of_python(self.questions, self.config, self.method, self.ended.steps, self.base, figures)

    def figure(self, *names: str) -> Figure:
        """Return the curves over the steps as one matplotlib figure, such as "entropy" and "loss"; without names the
        most telling ones. Raises ValueError for other names."""
        from mm_spine.reporting.run_figure import CURVES, draw_run

        return draw_run(list(map(asdict, self.reports)), list(map(asdict, self.timings)), names or CURVES)

    def show(self, *names: str) -> None:
        """Show the curves of `figure` in a notebook. Raises RuntimeError elsewhere."""
        from mm_spine.reporting.figures import png

        figure = self.figure(*names)
        if not in_notebook():
            raise RuntimeError(
                'show() draws in a notebook; elsewhere save the curves: result.figure().savefig("a.png")'
            )
        from IPython.display import Image, display

        # At half its size the picture is sharp on screens of two pixels a point.
        display(Image(png(figure), width=int(figure.get_size_inches()[0] * 75)))

    def __repr__(self) -> str:
        """Say how many steps were made and how many answers changed."""
        parts = [self.config.method.name, f"{self.ended.steps} steps", f"{len(self.questions)} questions"]
        if self.before is not None and self.after is not None:
            changes = self.after.changes(self.before)
            parts.append(f"{changes['changed']} of {changes['n']} answers changed")
            parts.append(f"vote share {changes['vote_share_before']:.2f} to {changes['vote_share_after']:.2f}")
        if self.stopped_by != "steps":
            parts.append(f"stopped by {self.stopped_by}")
        return f"AdaptationResult({', '.join(parts)})"

    def _repr_html_(self) -> str:
        return _as_html(repr(self), self.steps if self.before is None or self.after is None else self.answers)


def _as_html(line: str, frame: pd.DataFrame) -> str:
    """Return a result as a notebook shows it: its line, then the first rows of a frame."""
    more = f"<p>{len(frame) - SHOWN} more rows</p>" if len(frame) > SHOWN else ""
    return f"<p>{escape(line)}</p>{frame.head(SHOWN).to_html(index=False, border=0)}{more}"
