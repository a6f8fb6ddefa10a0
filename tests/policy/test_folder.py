"""Model folders that are accepted, and those that are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.policy.errors import ModelError
from mm_spine.policy.folder import check_model_folder, resolve_model
from mm_spine.policy.model import Policy


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of the shipped model folder to break."""
    yield Path(shutil.copytree(MODEL_DIR, tmp_path / "model"))


def test_shipped_model_folder_is_accepted(folder: Path) -> None:
    check_model_folder(folder)
    assert resolve_model(str(folder)) == folder


def index(folder: Path, *shards: str) -> None:
    """An index that lists `shards`."""
    text = json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(shards)}})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not a JSON object"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config\.json: not a JSON object"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "llama"})), "'llama'.*qwen2_5_vl"),
        (lambda f: (f / "config.json").write_text("{}"), "None.*qwen2_5_vl"),
        (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors.*corrupt"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 4096), r"model\.safetensors.*corrupt"),
        (lambda f: truncate(f / "model.safetensors"), r"model\.safetensors.*truncated"),
        (lambda f: index(f, "model-2-of-2.safetensors"), r"model-2-of-2\.safetensors is missing"),
    ],
)
def test_unusable_model_folders_are_refused_by_name(folder: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=words) as raised:
        Policy.load(folder)
    assert str(folder) in str(raised.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "nonsense", "a/b/c/d", "../nowhere", ""])
def test_a_name_that_resolves_nowhere_is_a_model_error(name: str) -> None:
    with pytest.raises(ModelError, match="model="):
        resolve_model(name)


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="config.json"):
        resolve_model(str(tmp_path / "weights.safetensors"))
