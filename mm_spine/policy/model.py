"""Load a model of a known family, freeze its vision tower, and check afterwards that it stayed frozen."""

from __future__ import annotations

import hashlib
import logging
import sys
import tempfile
from collections.abc import Hashable, Iterable, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mm_spine.config import CacheConfig, LoraConfig, ModelConfig, PromptConfig
from mm_spine.policy import attention, partitioned
from mm_spine.policy.distribution import banned_ids
from mm_spine.policy.errors import FrozenError, ModelError
from mm_spine.policy.families import Family, check_trainable, family_of, lora_targets
from mm_spine.policy.finite import assert_finite
from mm_spine.policy.folder import read_family, resolve_model
from mm_spine.policy.hub import CARD, Pushed, own_card, push_folder
from mm_spine.policy.image_cache import ImageCache
from mm_spine.policy.kernels import backend_name, why_not_flash_attn
from mm_spine.policy.merged import SavedState
from mm_spine.policy.packed import Prompt
from mm_spine.policy.parameters import check_loaded
from mm_spine.policy.processor_files import check_chat, load_processor
from mm_spine.policy.question_key import question_key
from mm_spine.policy.text import TextPolicy
from mm_spine.policy.turn_end import end_ids
from mm_spine.processors.chat import Chat, Encoded, EncodedImage, fewest_tokens
from mm_spine.processors.markers import PROMPT_LIMIT
from mm_spine.processors.tiles import runs
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import Question

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
    `source` is the folder or hub id that it was loaded from. `card` is the text of the README.md that `save` writes.
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
        check_trainable(model.config.model_type, self.family, language_model, self.config)
        self.peft = _add_lora(model, language_model, self.config.lora, seed) if self.config.train == "lora" else None
        self.model = model
        self._freeze()
        language_model.config._attn_implementation = attention.NAME
        if _flash_attn_fits(self.family, self.tower):
            self.tower.config._attn_implementation = FLASH
        # Mergers that train belong to the text policy; the image cache then holds what enters them.
        train_merger = self.config.train_merger
        mergers = self.family.mergers if train_merger else ()
        self.text = TextPolicy(language_model, model.lm_head.weight, self.family, self.tower if train_merger else None)
        width = language_model.config.hidden_size
        self.images = ImageCache(self.tower, mergers, cache, self.tower_checksum, width)
        # Whether ranks divide the text model's weights, so that each use of them is a collective.
        self.partitioned = any(map(partitioned.is_partitioned, self.text.parameters()))
        self.banned = banned_ids(self.tokenizer, self.family.vision_tokens)
        self.skipped: dict[str, str] = {}
        self.source: str | None = None
        self.card: str | None = None
        # Counts the changes of the trainable weights. A sampler takes the number over with the weights.
        self.version = 0
        # The question is kept beside its prompt so that the objects that `question_key` identifies it by stay alive.
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
        policy = cls(model.to(device).eval(), processor, config, seed, cache, chat)
        policy.source, policy.card = str(path), own_card(folder)
        return policy

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
        """The most tokens of a prompt and its response together.

        The text model has no positions for more, or a token at the end would not see the first one.
        """
        config = self.text.language_model.config
        # The attention over token trees has no window. Within this length a window hides nothing, so it is exact.
        return min(int(config.max_position_embeddings), self.family.window(config) or sys.maxsize)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The token ids that end a response; see `turn_end.end_ids`."""
        generation_config = getattr(self.model, "generation_config", None)
        return end_ids(self.model.config, generation_config, self.processor, self.tokenizer)

    def prompt(self, question: Question) -> Prompt:
        """Return the encoded prompt, made once per question. Raises BadQuestion if it cannot be encoded."""
        key = question_key(question)
        if key not in self._prompts:
            self._prompts[key] = (question, self._encode_or_skip(question))
        prompt = self._prompts[key][1]
        if prompt is None:
            raise BadQuestion(self.skipped[question.id])
        return prompt

    def pictures(self, question: Question) -> list[Image]:
        """Return the images of `question`, decoded as for a prompt of its own. Raises BadQuestion."""
        return [open_image(image, question.id) for image in question.images]

    def can_ask(self, question: Question, new_tokens: int = 0) -> bool:
        """Return whether `question` can be encoded and its prompt leaves room in the context for `new_tokens`.

        If not, log the reason once and keep it in `skipped`.
        """
        try:
            length = len(self.prompt(question).ids_L)
        except BadQuestion:
            return False
        if length + new_tokens > self.context:
            window = self.family.window(self.text.language_model.config)
            why = f" (each token sees {window} tokens)" if window == self.context else ""
            self._skip(
                question,
                f"{question.id}: its prompt of {length} tokens and {new_tokens} new ones do not fit in the model's "
                f"context of {self.context}{why}; shorten it, or lower model.max_pixels or max_new_tokens",
            )
            return False
        return True

    def forget(self, question: Question) -> None:
        """Drop the prompt of `question`. Its image features stay in the cache, within the cache's limits."""
        self._prompts.pop(question_key(question), None)
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
        positions = self.family.positions(self.model, encoded)
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
        grids = tuple(image.grid_thw for image in encoded.images)
        mutual = runs(encoded.types_L) if self.family.mutual else ()
        return Prompt(ids, positions, image_at, keys, grids, features, mutual)

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
        self.card = None

    def save(self, folder: str | Path) -> None:
        """Write a folder that loads with from_pretrained, processor included, and its model card if there is one.

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
        if self.card is not None:
            (folder / CARD).write_text(self.card, encoding="utf-8")

    def push_to_hub(self, repo: str, private: bool = True) -> Pushed:
        """Send what `save` writes to the hub's repository `repo`; return its address and the files that were sent.

        Weights, processor and model card are sent, and nothing of the questions. Raises ModelError where the hub
        refuses or cannot be reached; see `policy.hub.push_folder`.
        """
        if self.partitioned:
            raise ModelError(f"{repo}: this rank holds a part of the weights only; push the adapted/ of the run")
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return push_folder(Path(folder), repo, private)

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


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        digest.update(name.encode())
        with partitioned.gathered(tensor):
            # The memory itself, not a copy of it as bytes.
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flash_attn_fits(family: Family, tower: Any) -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    if tower is None or family.flash_width is None:
        return False
    width = family.flash_width(tower.config)
    # Asked for all the same: where transformers does not find the package it would look for a kernel on the hub.
    return not why_not_flash_attn(tower.device, tower.dtype, width) and is_flash_attn_2_available()


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
