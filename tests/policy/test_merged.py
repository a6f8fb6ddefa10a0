"""A policy with LoRA is saved as peft would save it merged, without a second model in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import KINDS, LORA, move
from tiny import tiny_policy

from mm_spine.policy import merged
from mm_spine.policy.errors import ModelError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_those_of_a_merged_copy_to_the_byte(
    kind: str, tied: bool, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(4, LORA, tied, kind)
    move(policy)
    policy.model.to(dtype)
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    # Several files.
    monkeypatch.setattr(merged, "SHARD_BYTES", 100_000)
    policy.save(tmp_path / "ours")
    copy.deepcopy(policy.peft).merge_and_unload().save_pretrained(tmp_path / "peft", max_shard_size=100_000)
    files = sorted(path.name for path in (tmp_path / "peft").glob("*.safetensors*"))
    assert len(files) > 2 and files == sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors*"))
    policy.peft.save_pretrained(tmp_path / "peft" / "adapter")
    for name in (*files, "config.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "peft" / name).read_bytes(), name
    assert all(torch.equal(before[name], weight) for name, weight in policy.model.state_dict().items())


def test_merged_weights_live_one_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_utils

    policy, files, alive = tiny_policy(4, LORA), [], []
    usual, merge = modeling_utils.safe_save_file, merged.merged_weight

    def write(tensors: dict[str, torch.Tensor], *arguments: object, **named: object) -> None:
        files.append(sum(tensor.nbytes for tensor in tensors.values()))
        alive.append(sum(weight.nbytes for weight in made if weight.is_alive()))  # type: ignore[attr-defined]
        usual(tensors, *arguments, **named)

    class Made:
        def __init__(self, weight: torch.Tensor) -> None:
            import weakref

            self.nbytes, self._weight = weight.nbytes, weakref.ref(weight)

        def is_alive(self) -> bool:
            return self._weight() is not None

    made: list[Made] = []

    def counted(projection: object) -> torch.Tensor:
        weight = merge(projection)
        made.append(Made(weight))
        return weight

    monkeypatch.setattr(modeling_utils, "safe_save_file", write)
    monkeypatch.setattr(merged, "merged_weight", counted)
    monkeypatch.setattr(merged, "SHARD_BYTES", 50_000)
    policy.save(tmp_path / "adapted")
    assert len(files) > 3
    # A merged weight lives while its file is written; the one before may still be held by the loop.
    assert all(held <= 2 * 50_000 for held in alive), alive


def test_a_transformers_that_saves_the_weights_unmerged_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged.LaterWeight, "contiguous", lambda self: self.as_subclass(torch.Tensor))
    with pytest.raises(ModelError, match="without their adapters"):
        tiny_policy(4, LORA).save(tmp_path / "adapted")
