"""Errors of this room: models that cannot be used, and runs that must not go on."""

from __future__ import annotations

from mm_spine.config import RunStopped


class ModelError(ValueError):
    """A model cannot be used. The message names the folder, file or key and says what to do."""


class ModelAbsent(ModelError):
    """A hub id has no copy on this machine, and fetching one is not allowed or not possible."""


class FrozenError(RunStopped):
    """A parameter that must stay frozen would train, or has changed."""


class NotFinite(RunStopped):
    """A weight, feature, log-prob, loss or gradient is NaN or infinite. The message names the step and the question."""


class ParityError(RunStopped):
    """Sampler and trainer disagree about the policy."""
