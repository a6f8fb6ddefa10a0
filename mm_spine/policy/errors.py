"""Errors of this room: a model folder that cannot be used, and a frozen parameter that would train."""

from __future__ import annotations

from mm_spine.config import RunStopped


class ModelError(ValueError):
    """A model cannot be used. The message names the folder, file or key and says what to do."""


class ModelAbsent(ModelError):
    """A hub id has no copy on this machine, and fetching one is not allowed or not possible."""


class FrozenError(RunStopped):
    """A parameter that must stay frozen would train, or has changed."""
