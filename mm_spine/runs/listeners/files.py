"""The files of each step: rollouts/, steps.jsonl, timings.jsonl."""

from __future__ import annotations

from mm_spine import files
from mm_spine.files import rollout_table
from mm_spine.runs.folder import RunFolder
from mm_spine.runs.listeners.listener import Listener, Step


class StepFiles(Listener):
    """Writes each step to the run's folder.

    The run must not go on with a step missing, so `Run` adds this listener as required.
    """

    def __init__(self, folder: RunFolder, rollouts: bool) -> None:
        self._folder, self._rollouts = folder, rollouts

    def step(self, step: Step) -> None:
        """Write the rollouts, unless the run keeps none, then the two lines."""
        number = step.report.step
        if self._rollouts:
            rollout_table.write_rollouts(self._folder.rollouts_file(number), step.groups, number, step.selected)
        files.JsonLines(self._folder.steps_file).append(step.report.row())
        files.JsonLines(self._folder.timings_file).append(step.timing)
