"""The tokens of one response that the loss acts on, and what the loss needs to know of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mm_spine.methods.band import Bounds

NO_WEIGHTS: Mapping[str, Tensor] = {}


class Limits(NamedTuple):
    """How far the importance ratio of each token may go: it is clipped at 1 - low and 1 + high, each (T,)."""

    low_T: Tensor
    high_T: Tensor


class Tokens(NamedTuple):
    """The selected tokens of one response: the masks of the policy term, the band and the KL, each (T,) bool.

    `bounds` is the entropy band in nats, None where the method has no band. The KL acts on the tokens of the policy
    term where `kl_T` is None. `advantage_T` (T,) replaces the response's advantage, `clip` the limits of the
    configuration. `weights` has the (T,) floats of further terms by name.
    """

    policy_T: Tensor
    band_T: Tensor
    bounds: Bounds | None
    kl_T: Tensor | None = None
    advantage_T: Tensor | None = None
    clip: Limits | None = None
    weights: Mapping[str, Tensor] = NO_WEIGHTS

    @property
    def anchored_T(self) -> Tensor:
        """The mask of the KL, (T,) bool."""
        return self.policy_T if self.kl_T is None else self.kl_T

    @property
    def any_T(self) -> Tensor:
        """The tokens on which some term acts, (T,) bool."""
        found_T = self.policy_T | self.band_T | self.anchored_T
        for weight_T in self.weights.values():
            found_T = found_T | (weight_T != 0)
        return found_T

    def weights_of(self, term: str) -> Tensor:
        """The weights (T,) of a further term: its own, else 1 on the tokens of the policy term."""
        return self.weights[term] if term in self.weights else self.policy_T.float()

    def parts(self) -> tuple[bytes, ...]:
        """What two responses of the same tokens and advantage must share to be trained as one."""
        tensors = [self.policy_T, self.band_T, self.anchored_T]
        tensors += [t for t in (self.advantage_T, *(self.clip or ())) if t is not None]
        own = [part for name in sorted(self.weights) for part in (name.encode(), _bytes(self.weights[name]))]
        return (*map(_bytes, tensors), *own)

    def weighed(self, term: str, weight_T: Tensor) -> Tokens:
        """Return the tokens with weights (T,) of a further term."""
        return self._replace(weights={**self.weights, term: weight_T})

    def without_policy(self, anchored: bool) -> Tokens:
        """Return the tokens of a response that the policy term leaves out; the KL keeps its own where `anchored`."""
        nothing_T = torch.zeros_like(self.policy_T)
        return self._replace(policy_T=nothing_T, kl_T=self.anchored_T if anchored else nothing_T)


def _bytes(tensor_T: Tensor) -> bytes:
    return tensor_T.numpy().tobytes()
