"""Load a model of a known family, freeze its tower, and prove afterwards that it stayed frozen."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mm_spine.config import CacheConfig, LoraConfig, ModelConfig, RunStopped
from mm_spine.policy import attention
from mm_spine.policy.distribution import banned_ids
from mm_spine.policy.families import FAMILIES, SUPPORTED, Family, lora_targets, rope_positions
from mm_spine.policy.image_cache import ImageCache
from mm_spine.policy.packed import Prompt
from mm_spine.policy.text import TextPolicy, Trained
from mm_spine.processors.chat import Encoded, EncodedImage
from mm_spine.processors.vision import BadQuestion
from mm_spine.types import Question

__all__ = ["FrozenError", "ModelAbsent", "ModelError", "Policy", "TextPolicy", "Trained"]

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelError(ValueError):
    """A model folder that cannot be used. The message names the folder or file and what to do."""


class ModelAbsent(ModelError):
    """A hub id that has no copy on this machine, and none may be fetched."""


class FrozenError(RunStopped):
    """A parameter that must not train would, or did."""


class Policy:
    """A model, its processor (or tokenizer), and what may train.

    `text` is what samples and trains; `tower` never changes, and is None for a text-only model.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: ModelConfig | None = None,
        seed: int = 0,
        cache: CacheConfig | None = None,
    ) -> None:
        self.config = config or ModelConfig()
        self.processor = processor
        self.family = _family(model.config.model_type, type(model).__name__)
        self.tokenizer = self.family.tokenizer(processor)
        self.tower = self.family.tower(model)
        language_model = self.family.language_model(model)
        _check(model.config.model_type, language_model, self.tower, self.config)
        self.peft = _add_lora(model, language_model, self.config.lora, seed) if self.config.train == "lora" else None
        self.model = model
        self._freeze()
        language_model.config._attn_implementation = attention.NAME
        before_merger = self.config.train_merger
        self.text = TextPolicy(language_model, model.lm_head.weight, self.family, self.tower if before_merger else None)
        self.images = ImageCache(self.tower, self.family.mergers if before_merger else (), cache, self.tower_checksum)
        self.banned = banned_ids(self.tokenizer)
        self.skipped: dict[str, str] = {}
        self._prompts: dict[int, tuple[Question, Prompt | None]] = {}

    @classmethod
    def load(
        cls, path: str | Path, config: ModelConfig | None = None, seed: int = 0, cache: CacheConfig | None = None
    ) -> Policy:
        """Load from a local folder or a cached hub id. Raises ModelError before anything large is read."""
        import transformers

        config = config or ModelConfig()
        folder = resolve_model(str(path))
        family = _family(_model_type(folder), folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = getattr(transformers, family.auto_model).from_pretrained(
            folder, dtype=DTYPES[config.dtype], attn_implementation="sdpa", trust_remote_code=False
        )
        processor = getattr(transformers, family.auto_processor).from_pretrained(folder, trust_remote_code=False)
        return cls(model.to(torch.device(device)).eval(), processor, config, seed, cache)

    @property
    def device(self) -> torch.device:
        return self.text.head.weight.device

    def prompt(self, question: Question) -> Prompt:
        """Encode `question` once per run. Raises BadQuestion if it cannot be asked."""
        if id(question) not in self._prompts:
            self._prompts[id(question)] = (question, self._encode_or_skip(question))
        prompt = self._prompts[id(question)][1]
        if prompt is None:
            raise BadQuestion(self.skipped[question.id])
        return prompt

    def can_ask(self, question: Question, new_tokens: int = 0) -> bool:
        """Whether `question` can be encoded and its prompt leaves room in the context for `new_tokens`.

        If not, the reason is logged once and kept in `skipped`, by its id.
        """
        try:
            length = len(self.prompt(question).ids_L)
        except BadQuestion:
            return False
        if length + new_tokens > self.context:
            self._skip(
                question,
                f"{question.id}: its prompt of {length} tokens and {new_tokens} new ones do not fit in the model's "
                f"context of {self.context}; shorten it, or lower model.max_pixels or max_new_tokens",
            )
            return False
        return True

    def forget(self, question: Question) -> None:
        """Drop what is kept of `question`; its image features stay, within the cache's bounds."""
        self._prompts.pop(id(question), None)
        self.skipped.pop(question.id, None)

    @property
    def context(self) -> int:
        """Tokens that the text model has positions for, prompt and response together."""
        return int(self.text.language_model.config.max_position_embeddings)

    def _encode_or_skip(self, question: Question) -> Prompt | None:
        try:
            return self._encode(question)
        except BadQuestion as error:
            self._skip(question, str(error))
        return None

    def _skip(self, question: Question, why: str) -> None:
        if self.skipped.get(question.id) != why:
            log.warning("question skipped: %s", why)
        self.skipped[question.id] = why

    def _encode(self, question: Question) -> Prompt:
        encoded = self._read(question)
        positions = rope_positions(self.model, encoded)
        image_at = encoded.types_L.nonzero()[:, 0]
        # While the pixels are here; the prompt then keeps keys alone.
        count = sum(len(self.images.features(image)) for image in encoded.images)
        if count != len(image_at):
            raise ModelError(f"{question.id}: {count} image features for {len(image_at)} image tokens")
        keys = tuple(image.key for image in encoded.images)
        features = partial(self.images.joined, keys, partial(self._images_again, question, keys))
        ids, positions, image_at = (x.to(self.device) for x in (encoded.ids_L, positions, image_at))
        return Prompt(ids, positions, image_at, keys, tuple(image.grid_thw for image in encoded.images), features)

    def _read(self, question: Question) -> Encoded:
        return self.family.encode(question, self.processor, self.config.min_pixels, self.config.max_pixels)

    def _images_again(self, question: Question, keys: tuple[str, ...]) -> tuple[EncodedImage, ...]:
        """For features that the cache has dropped. Raises BadQuestion if the images are no longer the same."""
        images = self._read(question).images
        if tuple(image.key for image in images) != keys:
            raise BadQuestion(f"{question.id}: an image changed while the run used it; put it back and start again")
        return images

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that may train."""
        return {name: p for name, p in self.text.named_parameters() if p.requires_grad}

    def count_parameters(self) -> tuple[int, int]:
        """(trainable, frozen) parameter counts, as `requires_grad` says."""
        sizes = [(p.requires_grad, p.numel()) for p in self.model.parameters()]
        return sum(n for grad, n in sizes if grad), sum(n for grad, n in sizes if not grad)

    def tower_checksum(self) -> str:
        """SHA-256 over the vision tower's parameters and buffers, its mergers included unless they train."""
        state = {} if self.tower is None else self.tower.state_dict()
        return checksum((name, value) for name, value in state.items() if not self._may_train(name))

    def assert_frozen(self) -> None:
        """Raise FrozenError naming the first tower parameter that would train."""
        for name, parameter in self.frozen_tower().items():
            if parameter.requires_grad:
                raise FrozenError(f"visual.{name} has requires_grad set: the vision tower must stay frozen")

    def frozen_tower(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of the tower, without the mergers if they train; empty where there is no tower."""
        return {name: p for name, p in self._tower_parameters() if not self._may_train(name)}

    def _tower_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return () if self.tower is None else self.tower.named_parameters()

    def _may_train(self, tower_name: str) -> bool:
        return self.config.train_merger and tower_name.split(".")[0] in self.family.mergers

    def weights(self) -> dict[str, Tensor]:
        """Copies of the trainable weights, to come back to (`restore`)."""
        return {name: p.detach().clone() for name, p in self.trainable().items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        """Set the trainable weights to copies made by `weights`."""
        for name, parameter in self.trainable().items():
            parameter.copy_(weights[name])

    def save(self, folder: Path) -> None:
        """Write a folder that loads with from_pretrained, processor included; LoRA merged, adapter beside it."""
        model = self.model
        if self.peft is not None:
            self.peft.save_pretrained(folder / "adapter")
            model = copy.deepcopy(self.peft).merge_and_unload()
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _freeze(self) -> None:
        for name, parameter in self._tower_parameters():
            parameter.requires_grad_(self._may_train(name))


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names and bytes, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def resolve_model(name: str, fetch: bool = True) -> Path:
    """A folder as it is, a hub id as its local copy, downloaded if `fetch` allows; checked. Raises ModelError."""
    folder = Path(name)
    if not folder.exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, local_files_only=not fetch))
        except LocalEntryNotFoundError as error:
            raise ModelAbsent(
                f"model={name}: not on this machine, and it cannot be fetched; give a folder, or go online ({error})"
            ) from error
        except (HFValidationError, HfHubHTTPError, OSError) as error:
            raise ModelError(f"model={name}: neither a folder nor a hub id that resolves here ({error})") from error
    check_model_folder(folder)
    return folder


def check_model_folder(folder: Path) -> None:
    """Raise ModelError for a folder without config or weights, of an unsupported kind, or with corrupt weights."""
    _family(_model_type(folder), folder)
    shards = sorted(folder.glob("*.safetensors"))
    if absent := _listed_shards(folder) - {shard.name for shard in shards}:
        raise ModelError(f"model={folder}: {min(absent)} is missing, its index lists it; fetch it again")
    if not shards:
        raise ModelError(f"model={folder}: no *.safetensors weights there (pickled weights are not read)")
    for shard in shards:
        try:
            with safe_open(shard, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{shard}: corrupt or truncated safetensors ({error}); fetch it again") from error


def _model_type(folder: Path) -> Any:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"model={folder}: no config.json there; give a Hugging Face model folder or hub id")
    try:
        return json.loads(config.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{config}: not a JSON object ({error}); fetch it again") from error


def _family(kind: Any, model: Path | str) -> Family:
    if kind not in SUPPORTED:
        raise ModelError(f"model={model}: model_type is {kind!r}; supported: {', '.join(SUPPORTED)}")
    return FAMILIES[kind]


def _listed_shards(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    return set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()


def _check(kind: str, language_model: Any, tower: Any, config: ModelConfig) -> None:
    """Raise ModelError for what no packed row can hold (a sliding window), or what the model has not (a merger)."""
    if "sliding_attention" in (getattr(language_model.config, "layer_types", None) or ()):
        raise ModelError(f"model ({kind}): its layers see a sliding window only; set use_sliding_window to false")
    if tower is None and config.train_merger:
        raise ModelError(f"model.train_merger: a model of type {kind} has no vision tower, hence no merger; unset it")


def _add_lora(model: Any, language_model: Any, lora: LoraConfig, seed: int) -> Any:
    """Wrap the language model's projections in LoRA, initialised from a generator of its own."""
    import peft

    targets = lora_targets(model, language_model)
    with _seeded(seed):
        return peft.get_peft_model(
            model,
            peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets),
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
