"""Other people's tools. Each is imported where it is used; `manifest` is what lmms-eval's plugin loader asks for."""

from __future__ import annotations

from typing import Any

from mm_spine.compat import heal_torchvision


def manifest() -> Any:
    """The ModelManifest of `lmms-eval --model mm_spine`; the model's own module loads when it is asked for."""
    # lmms-eval's own modules import torchvision after this call and before any module of ours.
    heal_torchvision()
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mm_spine", chat_class_path="mm_spine.integrations.lmms_eval.MMSpine")
