"""Turn the record of a step into the event that listeners receive."""

from __future__ import annotations

from dataclasses import replace

from mm_spine.adapt import StepRecord
from mm_spine.reporting.responses import first_responses
from mm_spine.runs.listeners.listener import Step, StepTiming
from mm_spine.runs.machine import peak_memory


def finished_step(record: StepRecord, total: int, responses: int, earlier_steps: int = 0) -> Step:
    """Return the event of a finished step, one of `total`, with its first `responses` responses to print.

    `earlier_steps` is how many steps the run has done for other questions.
    """
    report = replace(record.report, step=record.report.step + earlier_steps)
    selected = [[tokens.policy_T.numpy() for tokens in group] for group in record.tokens]
    timing = StepTiming(
        report.step,
        sample=record.seconds["sample"],
        update=record.seconds["update"],
        selected=sum(int(mask_T.sum()) for group in selected for mask_T in group),
        peak_memory_bytes=peak_memory(),
        token_budget=record.token_budget,
    )
    return Step(report, timing, total, first_responses(record.groups, responses), record.groups, selected)
