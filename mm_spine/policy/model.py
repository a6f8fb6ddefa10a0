"""Load a model of a known family, freeze its vision tower, and check afterwards that it stayed frozen."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Iterable, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm_spine.config import CacheConfig, LoraConfig, ModelConfig, PromptConfig
from mm_spine.policy import attention, partitioned
from mm_spine.policy.distribution import banned_ids
from mm_spine.policy.errors import FrozenError, ModelError
from mm_spine.policy.families import Family, family_of, lora_targets, rope_positions
from mm_spine.policy.finite import assert_finite
from mm_spine.policy.folder import read_family, resolve_model
from mm_spine.policy.image_cache import ImageCache
from mm_spine.policy.kernels import backend_name, why_not_flash_attn
from mm_spine.policy.merged import SavedState
from mm_spine.policy.packed import Prompt
from mm_spine.policy.parameters import check_loaded
from mm_spine.policy.processor_files import check_chat, load_processor
from mm_spine.policy.text import TextPolicy
from mm_spine.policy.turn_end import end_ids
from mm_spine.processors.chat import Chat, Encoded, EncodedImage, fewest_tokens
from mm_spine.processors.markers import PROMPT_LIMIT
from mm_spine.processors.vision import BadQuestion
from mm_spine.types import ImageLike, Question

log = logging.getLogger(__name__)

FLASH = "flash_attention_2"
"""transformers' name for flash-attn. Its towers then attend over all windows and images of a call at once.

With any other attention they loop over windows and images in Python.
"""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Policy:
    """A model with its processor, its frozen tower, its trainable weights, and the encoded prompts of a run.

    `text` samples and trains. `tower` never changes; it is None for a text-only model. `skipped` maps the ids of
    questions that could not be asked to the reason. `version` counts how often the trainable weights have changed.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: ModelConfig | None = None,
        seed: int = 0,
        cache: CacheConfig | None = None,
        chat: Chat | None = None,
    ) -> None:
        """Freeze `model` in place, and wrap it in LoRA if `config` says so.

        `processor` is the tokenizer for a text-only model; `seed` initialises LoRA. Raises ModelError.
        """
        self.config = config or ModelConfig()
        self.processor = processor
        self.chat = chat or Chat()
        self.family = family_of(model.config.model_type, type(model).__name__)
        self.tokenizer = self.family.tokenizer(processor)
        self.tower = self.family.tower(model)
        language_model = self.family.language_model(model)
        _check_trainable(model.config.model_type, language_model, self.tower, self.config)
        self.peft = _add_lora(model, language_model, self.config.lora, seed) if self.config.train == "lora" else None
        self.model = model
        self._freeze()
        language_model.config._attn_implementation = attention.NAME
        if self.tower is not None and _flash_attn_fits(self.tower):
            self.tower.config._attn_implementation = FLASH
        # Mergers that train belong to the text policy; the image cache then holds what enters them.
        train_merger = self.config.train_merger
        mergers = self.family.mergers if train_merger else ()
        self.text = TextPolicy(language_model, model.lm_head.weight, self.family, self.tower if train_merger else None)
        self.images = ImageCache(self.tower, mergers, cache, self.tower_checksum)
        # Whether ranks divide the text model's weights, so that each use of them is a collective.
        self.partitioned = any(map(partitioned.is_partitioned, self.text.parameters()))
        self.banned = banned_ids(self.tokenizer)
        self.skipped: dict[str, str] = {}
        # Counts the changes of the trainable weights. A sampler takes the number over with the weights.
        self.version = 0
        # The question is kept beside its prompt so that the objects that `_key` identifies it by stay alive.
        self._prompts: dict[Hashable, tuple[Question, Prompt | None]] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: ModelConfig | None = None,
        seed: int = 0,
        cache: CacheConfig | None = None,
        partition: Mapping[str, Any] | None = None,
        prompt: PromptConfig | None = None,
    ) -> Policy:
        """Load from a local folder or a hub id, after `check_model_folder`. Raises ModelError before weights are read.

        The chat template takes the system message and the arguments of `prompt`. With DeepSpeed's settings in
        `partition`, ranks divide the text model's weights (`policy.partitioned`). Raises NotFinite for weights that
        are NaN or infinite.
        """
        config = config or ModelConfig()
        folder = resolve_model(str(path))
        family, dtype = read_family(folder), DTYPES[config.dtype]
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        processor = load_processor(folder, family)
        chat = Chat(prompt.system, prompt.template_arguments) if prompt else Chat()
        check_chat(folder, family, processor, chat)
        if partition is None:
            model = _load_whole(folder, family, dtype)
        else:
            model = partitioned.load(folder, family, dtype, device, partition)
        assert_finite(model.named_parameters(), f"the weights in {folder} are damaged; fetch the folder again")
        return cls(model.to(device).eval(), processor, config, seed, cache, chat)

    @property
    def device(self) -> torch.device:
        return self.text.head.weight.device

    @property
    def kernels(self) -> dict[str, str | None]:
        """What computes attention: of the text model over token trees, and of the tower (None without one)."""
        width = int(self.text.language_model.layers[0].self_attn.head_dim)
        text = backend_name(self.device, self.text.head.weight.dtype, width)
        return {"text": text, "tower": None if self.tower is None else self.tower.config._attn_implementation}

    @property
    def context(self) -> int:
        """The most tokens that the text model has positions for, prompt and response together."""
        return int(self.text.language_model.config.max_position_embeddings)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The token ids that end a response; see `turn_end.end_ids`."""
        generation_config = getattr(self.model, "generation_config", None)
        return end_ids(self.model.config, generation_config, self.processor, self.tokenizer)

    def prompt(self, question: Question) -> Prompt:
        """Return the encoded prompt, made once per question. Raises BadQuestion if it cannot be encoded."""
        key = _key(question)
        if key not in self._prompts:
            self._prompts[key] = (question, self._encode_or_skip(question))
        prompt = self._prompts[key][1]
        if prompt is None:
            raise BadQuestion(self.skipped[question.id])
        return prompt

    def can_ask(self, question: Question, new_tokens: int = 0) -> bool:
        """Return whether `question` can be encoded and its prompt leaves room in the context for `new_tokens`.

        If not, log the reason once and keep it in `skipped`.
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
        """Drop the prompt of `question`. Its image features stay in the cache, within the cache's limits."""
        self._prompts.pop(_key(question), None)
        self.skipped.pop(question.id, None)

    def _encode_or_skip(self, question: Question) -> Prompt | None:
        try:
            return self._encode(question)
        except BadQuestion as error:
            self._skip(question, str(error))
        return None

    def _skip(self, question: Question, why: str) -> None:
        # It goes into summary.json too, and names the question by its id, which may hold anything: BadQuestion escapes.
        why = str(BadQuestion(why))
        if self.skipped.get(question.id) != why:
            log.warning("question skipped: %s", why)
        self.skipped[question.id] = why

    def _encode(self, question: Question) -> Prompt:
        characters = len(question.prompt)
        # Tokenising such a prompt takes seconds for each million characters, and reading its images is in vain too.
        if self.context < characters <= PROMPT_LIMIT:
            least = fewest_tokens(question, self.tokenizer)
            if least > self.context:
                raise BadQuestion(
                    f"{question.id}: its prompt of {characters:,} characters has at least {least:,} tokens and does "
                    f"not fit in the model's context of {self.context}; shorten it"
                )
        encoded = self._read(question)
        positions = rope_positions(self.model, encoded)
        image_at = encoded.types_L.nonzero()[:, 0]
        # Run the tower now, while the pixels are in memory; the prompt keeps only the keys of its images.
        read = [self.images.features(image) for image in encoded.images]
        assert_finite(
            ((f"{question.id}: image {i} after the vision tower", features) for i, features in enumerate(read, 1)),
            "the tower's weights or the stored features (cache.folder) are damaged; fetch the model again, or empty it",
        )
        count = sum(map(len, read))
        if count != len(image_at):
            raise ModelError(f"{question.id}: {count} image features for {len(image_at)} image tokens")
        keys = tuple(image.key for image in encoded.images)
        features = partial(self.images.joined, keys, partial(self._images_again, question, keys))
        ids, positions, image_at = (x.to(self.device) for x in (encoded.ids_L, positions, image_at))
        return Prompt(ids, positions, image_at, keys, tuple(image.grid_thw for image in encoded.images), features)

    def _read(self, question: Question) -> Encoded:
        return self.family.encode(question, self.processor, self.config.min_pixels, self.config.max_pixels, self.chat)

    def _images_again(self, question: Question, keys: tuple[str, ...]) -> tuple[EncodedImage, ...]:
        """Read the images again after the cache dropped their features. Raises BadQuestion if an image changed."""
        images = self._read(question).images
        if tuple(image.key for image in images) != keys:
            raise BadQuestion(f"{question.id}: an image changed while the run used it; put it back and start again")
        return images

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return name -> parameter of everything that trains."""
        return {name: p for name, p in self.text.named_parameters() if p.requires_grad}

    def count_parameters(self) -> tuple[int, int]:
        """Return the counts of (trainable, frozen) parameters, by `requires_grad`."""
        sizes = [(p.requires_grad, partitioned.size_of(p)) for p in self.model.parameters()]
        return sum(n for grad, n in sizes if grad), sum(n for grad, n in sizes if not grad)

    def tower_checksum(self) -> str:
        """Return the SHA-256 over the tower's parameters and buffers, without the mergers if they train."""
        state = {} if self.tower is None else self.tower.state_dict()
        return checksum((name, value) for name, value in state.items() if not self._may_train(name))

    def assert_frozen(self) -> None:
        """Raise FrozenError naming the first tower parameter that would train."""
        for name, parameter in self.frozen_tower().items():
            if parameter.requires_grad:
                raise FrozenError(f"visual.{name} has requires_grad set: the vision tower must stay frozen")

    def frozen_tower(self) -> dict[str, nn.Parameter]:
        """Return name -> parameter of the tower, without the mergers if they train; empty without a tower."""
        return {name: p for name, p in self._tower_parameters() if not self._may_train(name)}

    def _tower_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return () if self.tower is None else self.tower.named_parameters()

    def _may_train(self, tower_name: str) -> bool:
        return self.config.train_merger and tower_name.split(".")[0] in self.family.mergers

    def _freeze(self) -> None:
        for name, parameter in self._tower_parameters():
            parameter.requires_grad_(self._may_train(name))

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the trainable weights, for `restore`."""
        return {name: p.detach().clone() for name, p in self.trainable().items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        """Set the trainable weights to copies made by `weights`."""
        for name, parameter in self.trainable().items():
            parameter.copy_(weights[name])
        self.version += 1

    def save(self, folder: str | Path) -> None:
        """Write a folder that loads with from_pretrained, processor included.

        LoRA is merged into the weights of a file at a time; the adapter is written beside them, in `adapter/`. Raises
        NotFinite, and writes nothing, if a weight is NaN or infinite.
        """
        folder, state = Path(folder), SavedState(self.model)
        try:
            assert_finite(state.whole(), f"{folder} is not written; go on from a checkpoint, or lower optim.lr")
            if self.peft is not None:
                state.save_adapter(self.peft, folder / "adapter")
            state.save(folder)
        finally:
            state.done()
        self.processor.save_pretrained(folder)

    def help_saving(self) -> None:
        """While rank 0 runs `save`, hand over this rank's parts of partitioned weights."""
        if self.partitioned:
            SavedState(self.model).help()


def _load_whole(folder: Path, family: Family, dtype: torch.dtype) -> Any:
    """Load a checked model folder to the CPU. Raises ModelError."""
    import transformers

    model, found = getattr(transformers, family.auto_model).from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    check_loaded(folder, found)
    return model


def _key(question: Question) -> Hashable:
    """Return a key of the question's content that two different questions never share."""
    # The id is not enough: held-out and adapted questions may share one. The object's address is too much: a copy with
    # the same content would be encoded again, and an address may be reused. `Question` has no usable hash, because PIL
    # images compare by pixels.
    return question.id, question.prompt, tuple(map(_image_key, question.images))


def _image_key(image: ImageLike) -> Hashable:
    """Return a path or the bytes themselves, and the identity of any other image."""
    # Pixels and archive members are never compared: they are too slow to read. Their objects live as long as the
    # policy keeps the question, so an identity is not given to another image meanwhile. A file that is overwritten
    # during a run counts as the same image here; the image cache refuses it when it needs the file again.
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return str(image)
    return id(image)


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        digest.update(name.encode())
        with partitioned.gathered(tensor):
            # The memory itself, not a copy of it as bytes.
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flash_attn_fits(tower: Any) -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    width = tower.config.hidden_size // tower.config.num_heads
    # Asked for all the same: where transformers does not find the package it would look for a kernel on the hub.
    return not why_not_flash_attn(tower.device, tower.dtype, width) and is_flash_attn_2_available()


def _check_trainable(kind: str, language_model: Any, tower: Any, config: ModelConfig) -> None:
    """Raise ModelError for a model that a packed row cannot hold, or for a merger that does not exist."""
    # The attention over token trees has no window: every token reads all tokens of its path.
    if "sliding_attention" in (getattr(language_model.config, "layer_types", None) or ()):
        raise ModelError(f"model ({kind}): its layers see a sliding window only; set use_sliding_window to false")
    if tower is None and config.train_merger:
        raise ModelError(f"model.train_merger: a model of type {kind} has no vision tower, hence no merger; unset it")


def _add_lora(model: Any, language_model: Any, lora: LoraConfig, seed: int) -> Any:
    """Wrap the language model's projections in LoRA, in place."""
    import peft

    targets = lora_targets(model, language_model)
    # The initialisation depends on `seed` only, and leaves torch's global generator as it was.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(
            model,
            peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets),
        )
