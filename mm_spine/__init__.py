"""mm-spine: adapt a vision-language model to an unlabelled test set.

The public names load on first use: torch and transformers take seconds to import, and `mm-spine --help` needs
neither.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mm_spine.compat import quiet_environment

if TYPE_CHECKING:
    from mm_spine.adapt import Hooks
    from mm_spine.benchmarks import register_benchmark
    from mm_spine.methods.method import Method
    from mm_spine.methods.table import configure, register_method
    from mm_spine.policy.model import Policy
    from mm_spine.processors.answers import register_kind
    from mm_spine.runs.python import adapt, evaluate
    from mm_spine.types import AnswerSpec, Question

__all__ = [
    "AnswerSpec",
    "Hooks",
    "Method",
    "Policy",
    "Question",
    "adapt",
    "configure",
    "evaluate",
    "register_benchmark",
    "register_kind",
    "register_method",
]

quiet_environment()

_HOMES = {
    "AnswerSpec": "mm_spine.types",
    "Hooks": "mm_spine.adapt",
    "Method": "mm_spine.methods.method",
    "Policy": "mm_spine.policy.model",
    "Question": "mm_spine.types",
    "adapt": "mm_spine.runs.python",
    "configure": "mm_spine.methods.table",
    "evaluate": "mm_spine.runs.python",
    "register_benchmark": "mm_spine.benchmarks",
    "register_kind": "mm_spine.processors.answers",
    "register_method": "mm_spine.methods.table",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The class of this package, so that `mm_spine.adapt` is the function in whatever order modules are imported."""

    # There is a submodule of the name `adapt` too, the loop. Whenever a submodule has been imported, the import system
    # assigns it to the attribute of its name on the package, so `from mm_spine.adapt import Hooks` anywhere would make
    # `from mm_spine import adapt` give the module. A property is looked up before the attributes of the object and
    # receives that assignment: its setter drops the module, its getter always gives the function.
    @property
    def adapt(self) -> Any:
        return __getattr__("adapt")

    @adapt.setter
    def adapt(self, submodule: ModuleType) -> None:
        if not isinstance(submodule, ModuleType):
            raise TypeError(f"mm_spine.adapt is the function that adapts; it cannot be set to {submodule!r}")


sys.modules[__name__].__class__ = _Package
