"""The text policy: packed forward through the language model, then the head on selected tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mm_spine.policy import attention
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.families import Family, find_mergers
from mm_spine.policy.head import Anchor, Projected, SelectedHead
from mm_spine.policy.packed import PackedBatch
from mm_spine.types import Statistic, TokenStats


class Trained(NamedTuple):
    """A forward over a micro-batch: TokenStats, the divergence from the anchor (N, T), and the statistics asked for,
    each (N, T); all 0 where not selected."""

    stats: TokenStats
    kl_NT: Tensor
    statistics: tuple[Tensor, ...] = ()


class LastLayer:
    """Hooks that compute no more of the last decoder layer than the trunk's output needs.

    Keys and values are computed for all tokens. Queries, their attention, its output projection and the feed-forward
    part are computed only for tokens that predict something; the others' outputs are zero and not read. A call without
    a plan, as in decoding, is not changed.
    """

    # Hooks run again when a checkpointed layer is recomputed, so all state is set on entry and cleared on leaving.

    def __init__(self, layer: Any) -> None:
        self.places: Tensor | None = None
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        layer.register_forward_hook(self._leave, always_call=True)
        for part in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp):
            part.register_forward_pre_hook(self._gather)
            part.register_forward_hook(self._spread)

    def _enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        plan = kwargs.get("plan")
        if plan is None:
            return None
        self.places = plan.wanted_at
        self.length = plan.length
        return args, {**kwargs, "plan": plan.narrowed}

    def _leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.places = None

    def _gather(self, part: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        return None if self.places is None else (args[0].index_select(1, self.places),)

    def _spread(self, part: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.places is None:
            return None
        whole = output.new_zeros(output.shape[0], self.length, output.shape[-1])
        return whole.index_copy(1, self.places, output)


class TextPolicy(nn.Module):
    """The part of the model that trains: language model, head, and the tower's mergers if given."""

    # The vision tower is not a submodule, so that no training engine can reach its parameters.

    def __init__(
        self, language_model: Any, head_weight: nn.Parameter, family: Family, tower_with_mergers: Any = None
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.head = SelectedHead(head_weight)
        LastLayer(language_model.layers[-1])
        self.family = family
        self.mergers = family.mergers if tower_with_mergers is not None else ()
        for name in self.mergers:
            self.add_module(name, tower_with_mergers.get_submodule(name))
        self.patches = tower_with_mergers.config.spatial_merge_size**2 if self.mergers else 0

    def hidden(
        self, ids_BP: Tensor, positions_3BP: Tensor, mask: Tensor, image_at_I: Tensor, features_IF: Tensor, **more: Any
    ) -> Tensor:
        """Return the last hidden states (B, P, D), with image features in place of the embeddings at `image_at_I`.

        `image_at_I` are flat, ascending places in `ids_BP`. `mask` (B, 1, P, K) is True where a query may read a key.
        `more` goes to the language model.
        """
        embeds = self.language_model.embed_tokens(ids_BP)
        deepstack: Sequence[Tensor] = ()
        if len(image_at_I):
            first, *deepstack = self.image_inputs(features_IF, embeds.shape[-1])
            embeds = embeds.flatten(0, 1).index_copy(0, image_at_I, first.to(embeds.dtype)).view_as(embeds)
        output = self.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            **self.family.arguments(positions_3BP, image_at_I, deepstack),
            **more,
        )
        found: Tensor = output.last_hidden_state
        return found

    def image_inputs(self, features_IF: Tensor, width: int) -> Sequence[Tensor]:
        """Return (I, D) for the text model's input and for each layer that takes DeepStack features.

        `features_IF` holds them side by side. If the mergers train, it holds what enters them, and they run here.
        """
        if not self.mergers:
            return features_IF.split(width, dim=-1)
        mergers = find_mergers(self, self.mergers).values()
        parts = features_IF.chunk(len(mergers), dim=-1)
        rows = len(features_IF) * self.patches
        return [merger(part.reshape(rows, -1)) for merger, part in zip(mergers, parts, strict=True)]

    def trunk(self, batch: PackedBatch) -> Tensor:
        """Return the hidden states (S, D) that the distinct predictions of `batch` are made from."""
        hidden_1PD = self.hidden(
            batch.ids_1P,
            batch.positions_31P,
            attention.no_mask(batch.ids_1P.device),
            batch.image_at_I,
            batch.features_ID,
            use_cache=False,
            plan=batch.plan,
        )
        return hidden_1PD[0].index_select(0, batch.predict_at_S)

    def forward(
        self,
        batch: PackedBatch,
        distribution: Distribution,
        anchor: Anchor | None = None,
        statistics: Sequence[Statistic] = (),
    ) -> Trained:
        """Run trunk and head, and put each prediction at its places in (N, T)."""
        projected: Projected = self.head(self.trunk(batch), batch.target_S, distribution, anchor, statistics)
        n, t = batch.shape_NT
        zeros = projected.logp_S.new_zeros(n * t)
        at_slots = (x.index_select(0, batch.prediction_K) for x in projected.flat())
        logp_NT, entropy_NT, kl_NT, *values = (zeros.index_copy(0, batch.slot_K, x).view(n, t) for x in at_slots)
        selected_NT = torch.zeros(n * t, dtype=torch.bool, device=zeros.device).index_fill(0, batch.slot_K, True)
        return Trained(TokenStats(logp_NT, entropy_NT, selected_NT.view(n, t)), kl_NT, tuple(values))
