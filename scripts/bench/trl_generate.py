"""Generate with TRL's GRPOTrainer: a real trainer, unchanged, called as its own training step calls it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from tempfile import mkdtemp
from typing import Any, NamedTuple

from workload import Sizes

import mm_spine  # noqa: F401  (heals a torchvision that would stop trl's import)
from mm_spine.types import Question


class Ready(NamedTuple):
    """What TRL hands to its generation: token ids and images by rollout, and the processor's other tensors."""

    prompt_ids: Any
    images: Any
    fields: Any


def make_trainer(model: Any, processor: Any, questions: Sequence[Question], sizes: Sizes) -> Any:
    """Make a GRPOTrainer for `model` that generates with transformers, all rollouts of a step in one batch."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    def no_reward(completions: list[Any], **_: Any) -> list[float | None]:
        return [0.0] * len(completions)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer: Any = GRPOTrainer(
            model=model,
            reward_funcs=no_reward,
            args=_arguments(sizes, model.device.type),
            train_dataset=_dataset(questions),
            processing_class=processor,
        )
    trainer.model.train()
    return trainer


def _arguments(sizes: Sizes, device: str) -> Any:
    from trl.trainer.grpo_config import GRPOConfig

    return GRPOConfig(
        output_dir=mkdtemp(prefix="bench_sampling_"),
        per_device_train_batch_size=sizes.questions * sizes.rollouts,
        num_generations=sizes.rollouts,
        max_completion_length=sizes.response_tokens,
        temperature=1.0,
        beta=0.0,
        bf16=False,
        use_cpu=device == "cpu",
        seed=sizes.seed,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def _dataset(questions: Sequence[Question]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [_chat(q) for q in questions], "images": [list(q.images) for q in questions]})


def _chat(question: Question) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question.prompt}]


def process(trainer: Any, questions: Sequence[Question]) -> Ready:
    """Chat and image processing of a batch in which every question stands `num_generations` times, as its own sampler
    repeats them."""
    from trl.data_utils import prepare_multimodal_messages

    repeated = [question for question in questions for _ in range(trainer.num_generations)]
    prompts = [prepare_multimodal_messages(_chat(q), images=list(q.images)) for q in repeated]
    return Ready(*trainer._tokenize_prompts(prompts))


def generate(trainer: Any, ready: Ready) -> list[list[int]]:
    """Return the token ids of every rollout, its end token included."""
    ids, _ = trainer._generate_single_turn(*ready, trainer.num_generations)
    drawn: list[list[int]] = ids
    return drawn
