"""What is wrong with a run is said before a model loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import Lab, never_load

from mm_spine.config import ConfigError
from mm_spine.policy.errors import ModelError
from mm_spine.policy.model import Policy
from mm_spine.runs.run import run


def test_the_oracle_is_refused_before_any_model_loads(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "load", never_load)
    output = lab.folder / "refused"
    with pytest.raises(ConfigError, match="--allow-labels"):
        run(lab.config({"method": "oracle"}), output)
    assert not output.exists()


@pytest.mark.parametrize(
    "layer, error, words",
    [
        ({"method": {"name": "ttrl", "band_anchor": "initial"}}, ConfigError, "band_anchor=initial.*has no band"),
        ({"model": {"path": "nowhere"}}, ModelError, "nowhere"),
    ],
)
def test_a_wrong_configuration_stops_before_the_model_loads(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: Any, error: Any, words: str
) -> None:
    monkeypatch.setattr(Policy, "load", never_load)
    with pytest.raises(error, match=words):
        run(lab.config(layer), tmp_path / "run")
    assert not (tmp_path / "run").exists()
