"""Other evaluation tools around our models. lmms-eval finds our model through `manifest`, its entry point."""

from __future__ import annotations

from typing import Any

from mm_spine.compat import heal_torchvision


def manifest() -> Any:
    """Return the ModelManifest of `lmms-eval --model mm_spine`. The module of the model is imported only when used."""
    # lmms-eval's own modules import torchvision after this call and before any module of ours.
    heal_torchvision()
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mm_spine", chat_class_path="mm_spine.integrations.lmms_eval.MMSpine")
