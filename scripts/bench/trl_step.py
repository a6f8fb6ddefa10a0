"""Train with TRL's GRPOTrainer on saved rollouts, rewards and token selection; the update is TRL's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor
from workload import STD_EPS, Sizes, Work

import mm_spine  # noqa: F401  (heals a torchvision that would stop trl's import)
from mm_spine.config import MethodConfig

PROJECTED_BYTES = 2**30
"""Logits in fp32 that TRL may project at a time."""

assert STD_EPS == 1e-4, "TRL adds 1e-4 to the standard deviation of a group's rewards"


def make_trainer(
    model: Any,
    processor: Any,
    work: Work,
    sizes: Sizes,
    options: MethodConfig,
    optimizer: Any,
    recompute: bool = False,
) -> Any:
    """Make a GRPOTrainer for `model`, whose tower is frozen, that has prepared one batch of the saved rollouts.

    `recompute` turns gradient checkpointing on, which is TRL's default.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Saved(GRPOTrainer):  # type: ignore[misc]
        """Returns the saved completions and, once prepared, the same batch; selects the saved tokens."""

        def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
            prompt_ids, _, _ = self._tokenize_prompts(prompts)
            drawn = [list(rollout.token_ids) for group in work.groups for rollout in group.rollouts]
            said = [[{"role": "assistant", "content": ""}] for _ in drawn]
            return prompt_ids, drawn, None, said, None, {}, None, []

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            selected = torch.stack([tokens.policy_T for group in work.tokens for tokens in group])
            scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
            return {**scored, "selected": selected.to(scored["completion_ids"].device)}

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            """Return the dictionary unchanged: what training_step receives is already prepared."""
            return generation_batch if isinstance(generation_batch, dict) else super()._prepare_inputs(generation_batch)

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
            self.chosen = inputs["selected"]
            return super()._compute_loss(model, inputs)

        def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
            return self.chosen

    rewards = [float(r) for group in work.groups if group.rewards is not None for r in group.rewards]

    def saved_rewards(completions: list[Any], **_: Any) -> list[float | None]:
        return list(rewards)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer: Any = Saved(
            model=model,
            reward_funcs=saved_rewards,
            args=_arguments(sizes, options, model.device.type, recompute),
            train_dataset=_dataset(work),
            processing_class=processor,
            optimizers=(optimizer, None),
        )
    trainer.create_scheduler(num_training_steps=1_000_000, optimizer=trainer.optimizer)
    trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def _arguments(sizes: Sizes, options: MethodConfig, device: str, recompute: bool) -> Any:
    from trl.trainer.grpo_config import GRPOConfig

    return GRPOConfig(
        output_dir=mkdtemp(prefix="bench_step_"),
        per_device_train_batch_size=sizes.questions * sizes.rollouts,
        num_generations=sizes.rollouts,
        max_completion_length=sizes.response_tokens,
        beta=0.0,
        loss_type="dapo",
        epsilon=options.clip_low,
        epsilon_high=options.clip_high,
        top_entropy_quantile=sizes.selected if sizes.selected < 1 else 0.5,
        temperature=1.0,
        max_grad_norm=1.0,
        gradient_checkpointing=recompute,
        bf16=False,
        use_cpu=device == "cpu",
        seed=sizes.seed,
        report_to="none",
        logging_steps=10**9,
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def _dataset(work: Work) -> Any:
    from datasets import Dataset

    prompts = [[{"role": "user", "content": group.question.prompt}] for group in work.groups]
    images = [list(group.question.images) for group in work.groups]
    return Dataset.from_dict({"prompt": prompts, "images": images})


def prepare(trainer: Any, work: Work) -> dict[str, Any]:
    """Do what TRL does between generation and the update: chat, images of every rollout, padding, rewards."""
    batch: dict[str, Any] = trainer._prepare_inputs(list(_rows(work)))
    return batch


def _rows(work: Work) -> Iterator[dict[str, Any]]:
    for group in work.groups:
        for _ in group.rollouts:
            prompt = [{"role": "user", "content": group.question.prompt}]
            yield {"prompt": prompt, "images": list(group.question.images)}


def in_parts(batch: dict[str, Any], vocab: int) -> list[dict[str, Any]]:
    """Split a prepared batch into equal parts, as TRL splits one for gradient accumulation.

    A part has at most PROJECTED_BYTES of fp32 logits, or one rollout. The loss is over all tokens of the batch, so that
    the parts' gradients add up to the whole one's.
    """
    from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

    count, positions = batch["completion_ids"].shape
    if batch["completion_ids"].device.type == "cpu":
        # Only on CUDA does TRL leave the prompts out of the projection.
        positions += batch["prompt_ids"].shape[1]
    rows = max(1, PROJECTED_BYTES // (4 * vocab * positions))
    parts = next(n for n in range(1, count + 1) if count % n == 0 and count // n <= rows)
    return [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(split_pixel_values_by_grid(batch), parts)]


def backward(trainer: Any, parts: list[dict[str, Any]]) -> None:
    """Take TRL's training step: loss and backward of each part; gradients stay on the parameters."""
    for part in parts:
        trainer.training_step(trainer.model_wrapped, part, None)


def update(trainer: Any, parts: list[dict[str, Any]]) -> None:
    """Take one optimiser step as Trainer's loop does: training step, gradient clipping, AdamW, zero gradients."""
    backward(trainer, parts)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    trainer.model.zero_grad()
