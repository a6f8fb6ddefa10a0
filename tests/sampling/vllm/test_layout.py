"""Settings of the engine that are refused before a model loads, each in one sentence, and the cards of an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mm_spine import distributed
from mm_spine.config import ConfigError
from mm_spine.methods.table import configure
from mm_spine.sampling.registry import check_sampling
from mm_spine.sampling.vllm.layout import check_layout, own_cards


def test_layouts_that_work() -> None:
    for wanted, ranks, cards in ((1, 8, 8), (2, 2, None), (4, 1, 4), (2, 4, 4), (4, 4, 4), (1, 1, 0)):
        check_layout(wanted, ranks, cards, 16)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (
            (2, 3, 3),
            "tensor_parallel=2: an engine takes the cards of 2 ranks of one host, and 3 ranks run on this one; set",
        ),
        ((4, 2, 8), "tensor_parallel=4: an engine takes the cards of 4 ranks of one host, and 2 ranks run on this one"),
        ((4, 1, 2), "tensor_parallel=4: this process sees 2 cards; set it to 2"),
        ((3, 1, None, 16), "tensor_parallel=3: the model has 16 attention heads; set it to a divisor of 16"),
    ],
)
def test_layouts_that_cannot_work_are_named(layout: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_layout(*layout)


def test_a_run_is_refused_before_its_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen2_5_vl", "text_config": {"num_attention_heads": 28}})
    )
    config = configure({"sampling": {"backend": "vllm", "vllm": {"tensor_parallel": 8}}})
    with pytest.raises(ConfigError, match="the model has 28 attention heads"):
        check_sampling(config, tmp_path)
    check_sampling(configure({"sampling": {"vllm": {"tensor_parallel": 8}}}), tmp_path)  # sampled with transformers
    monkeypatch.setenv("WORLD_SIZE", "12")
    with pytest.raises(ConfigError, match="8 ranks of one host, and 12 ranks"):
        check_sampling(config, None)
    hot = configure({"sampling": {"backend": "vllm"}, "evaluation": {"temperature": 2.5}})
    with pytest.raises(ConfigError, match="evaluation.temperature=2.5: vLLM takes 2 at most"):
        check_sampling(hot, None)


def test_an_engine_has_the_cards_of_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (own_cards(1), own_cards(2)) == ("2", "2,3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,6,7")
    assert (own_cards(1), own_cards(2)) == ("6", "6,7")


@pytest.mark.parametrize(("world", "together"), [(1, 1), (1, 4), (4, 1), (4, 2), (6, 3), (8, 8)])
@pytest.mark.parametrize("count", [0, 1, 5, 32])
def test_the_first_rank_of_a_group_samples_for_all(
    world: int, together: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question once, and in `gather`'s order when the shares are put together again."""
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.mine(list(range(count)), together))
    assert all(not share for rank, share in enumerate(shares) if rank % together)
    longest = max(map(len, shares))
    assert [share[i] for i in range(longest) for share in shares if i < len(share)] == list(range(count))
