"""mm-spine: adapt a vision-language model to an unlabelled test set."""

from mm_spine.compat import heal_torchvision, quiet_environment

quiet_environment()
heal_torchvision()

# Not lazily: once the submodule of that name was imported, `mm_spine.adapt` would be the module, not the function.
from mm_spine.adapt import adapt  # noqa: E402
from mm_spine.methods.table import configure  # noqa: E402
from mm_spine.policy.model import Policy  # noqa: E402
from mm_spine.types import AnswerSpec, Question  # noqa: E402

__all__ = ["AnswerSpec", "Policy", "Question", "adapt", "configure"]
