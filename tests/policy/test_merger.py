"""`model.train_merger`: the merger trains, exactly as in the plain forward, and the rest of the tower does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_policy
from torch import Tensor

from mm_spine.config import ModelConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, pack
from mm_spine.processors.chat import encode
from mm_spine.types import AnswerSpec, Question

RESPONSES = ([70, 81, 95, 60], [90, 72])


def _question() -> Question:
    rng = np.random.default_rng(0)
    images = tuple(Image.fromarray(rng.integers(0, 255, (56, w, 3), dtype=np.uint8)) for w in (84, 140))
    return Question("q", images, "Add them.", AnswerSpec("integer"))


def _packed_loss(policy: Policy, question: Question) -> Tensor:
    leaves = [torch.tensor(ids) for ids in RESPONSES]
    batch = pack([Branches(policy.prompt(question), leaves, [torch.ones(len(x), dtype=torch.bool) for x in leaves])])
    stats = policy.text(batch, Distribution(0.7, policy.banned)).stats
    return stats.logp_NT.sum() + stats.entropy_NT.square().sum()


def _plain_loss(policy: Policy, question: Question) -> Tensor:
    encoded = encode(question, policy.processor)
    total = torch.zeros(())
    for ids in RESPONSES:
        row = torch.cat([encoded.ids_L, torch.tensor(ids)])[None]
        types = torch.cat([encoded.types_L, torch.zeros(len(ids), dtype=encoded.types_L.dtype)])[None]
        logits = policy.model(
            input_ids=row,
            mm_token_type_ids=types,
            attention_mask=torch.ones_like(row),
            pixel_values=torch.cat([image.pixel_values for image in encoded.images]),
            image_grid_thw=torch.stack([image.grid_thw for image in encoded.images]),
        ).logits[0, len(encoded.ids_L) - 1 : -1]
        log_probs = Distribution(0.7, policy.banned).log_probs(logits)
        entropy = torch.distributions.Categorical(logits=log_probs.clamp(min=-1e9)).entropy()
        total = total + log_probs.gather(-1, torch.tensor(ids)[:, None]).sum() + entropy.square().sum()
    return total


def _gradients(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    policy.model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in policy.trainable().items() if p.grad is not None}


def test_a_trained_merger_gets_the_gradient_of_the_plain_forward() -> None:
    policy = tiny_policy(config=ModelConfig(train_merger=True))
    packed, plain = (_gradients(policy, f(policy, _question())) for f in (_packed_loss, _plain_loss))
    mergers = [name for name in policy.trainable() if name.startswith("merger.")]
    assert len(mergers) == 5
    assert packed.keys() == plain.keys() == policy.trainable().keys()
    for name, expected in plain.items():
        assert expected.norm() > 0, name
        assert (packed[name] - expected).norm() <= 1e-5 * expected.norm(), name


def test_only_the_merger_of_the_tower_may_train_and_only_if_asked() -> None:
    policy, frozen = tiny_policy(config=ModelConfig(train_merger=True)), tiny_policy()
    merger = sum(p.numel() for p in policy.tower.merger.parameters())
    assert policy.count_parameters()[0] - frozen.count_parameters()[0] == merger
    assert not any(p.requires_grad for p in frozen.tower.parameters())
    policy.assert_frozen()
    before, before_frozen = policy.tower_checksum(), frozen.tower_checksum()
    with torch.no_grad():
        policy.tower.merger.mlp[0].bias += 1
        frozen.tower.merger.mlp[0].bias += 1
    assert policy.tower_checksum() == before
    assert frozen.tower_checksum() != before_frozen


def test_the_cache_serves_features_before_the_merger_so_that_its_weights_may_move() -> None:
    policy = tiny_policy(config=ModelConfig(train_merger=True))
    loss = _packed_loss(policy, _question())
    with torch.no_grad():
        policy.tower.merger.mlp[2].weight.mul_(1.5)
    moved = _packed_loss(policy, _question())
    assert moved.item() == pytest.approx(_plain_loss(policy, _question()).item(), rel=1e-5)
    assert abs(moved.item() - loss.item()) > 1e-3
    assert policy.images.misses == 2
