"""mm-spine: adapt a vision-language model to an unlabelled test set.

    from mm_spine import AnswerSpec, Policy, Question, adapt

The names below load on first use, so that `import mm_spine` costs nothing but the environment's repair.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mm_spine.compat import heal_torchvision, quiet_environment

quiet_environment()
heal_torchvision()

if TYPE_CHECKING:
    from mm_spine.adapt import adapt as adapt
    from mm_spine.config import build as build
    from mm_spine.policy.model import Policy as Policy
    from mm_spine.types import AnswerSpec as AnswerSpec
    from mm_spine.types import Question as Question

_HOME = {
    "AnswerSpec": "mm_spine.types",
    "Policy": "mm_spine.policy.model",
    "Question": "mm_spine.types",
    "adapt": "mm_spine.adapt",
    "build": "mm_spine.config",
}
__all__ = list(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mm_spine' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # `mm_spine.adapt` is the function, also after its module was imported
    return value
