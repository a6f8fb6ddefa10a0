"""The rows of a benchmark, and each prompt exactly as a model gets it. For `mm-spine benchmarks`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image
from torch import Tensor

from mm_spine.benchmarks import Benchmark
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.benchmarks.folder import FolderBenchmark
from mm_spine.policy.families import FAMILIES, Encode, Family
from mm_spine.processors.chat import PLAIN, EncodedImage, content, encode, encode_text
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import ImageLike, LabelledSet, Question
from mm_spine.words import visible

QWEN_PIXELS = (3136, 12_845_056)
"""`min_pixels` and `max_pixels` in preprocessor_config.json of Qwen/Qwen2.5-VL-3B-Instruct, 7B and 72B."""


class PromptReader(NamedTuple):
    """What renders prompts: a model's processor, or the tokenizer of a text-only model, with its pixel limits.

    `remark` says so if the processor is not that of the model to be used. `family` is None for a model of none.
    """

    processor: Any
    min_pixels: int | None = None
    max_pixels: int | None = None
    remark: str = ""
    family: Family | None = None

    @property
    def encode(self) -> Encode:
        if self.family is None:
            return encode if hasattr(self.processor, "image_processor") else encode_text
        return self.family.encode


class ImageSize(NamedTuple):
    """Width and height of an image in pixels: of the file, and as the model gets it, in `tiles` tiles if not 0."""

    original: tuple[int, int]
    resized: tuple[int, int]
    tiles: int = 0


@dataclass(frozen=True)
class RenderedPrompt:
    """One question as a model gets it. In `prompt` a run of image tokens is written as "token x number"."""

    prompt: str
    images: tuple[ImageSize, ...]
    text_tokens: int
    image_tokens: int


def prompt_reader(benchmark: Benchmark, model: str | None = None) -> PromptReader:
    """Load the processor of `model`, by default of the benchmark's own model.

    For a benchmark without a model of its own, the embedded model's processor is used with Qwen2.5-VL's pixel limits.

    Raises:
        ValueError: `model` is neither a folder nor a hub id with a processor or tokenizer.
    """
    if model is None and benchmark.default_model is None:
        remark = (
            "no --model: the embedded model's processor stands in, with Qwen2.5-VL's pixel limits. Image sizes and "
            "image tokens are those of Qwen2.5-VL; the chat template differs, and text tokens are counted too high."
        )
        return PromptReader(*_processor(str(MODEL_DIR))[:1], *QWEN_PIXELS, remark)
    processor, family = _processor(model or str(benchmark.default_model))
    return PromptReader(processor, family=family)


def _processor(name: str) -> tuple[Any, Family | None]:
    """Load the processor class of the model's family; of an unknown family (None), what AutoProcessor finds."""
    import transformers

    place = Path(name).expanduser() if Path(name).exists() else name
    try:
        family = FAMILIES.get(transformers.AutoConfig.from_pretrained(place).model_type)
        reader = getattr(transformers, family.auto_processor if family else "AutoProcessor")
        return reader.from_pretrained(place), family
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {name}: no processor there; give a model folder or hub id ({error})") from error


def facts(benchmark: Benchmark, split: str, labelled: LabelledSet, source: str | None = None) -> dict[str, Any]:
    """Describe the benchmark, and count the split's rows, those with a gold and those that cannot be asked."""
    absent = sum(missing(question) is not None for question in labelled.questions)
    return {
        "what": benchmark.summary,
        "source": source or place(benchmark),
        "split": f"{split} (of {', '.join(benchmark.splits)})",
        "kind": benchmark.kind,
        "metric": benchmark.metric,
        "broken down by": ", ".join(benchmark.breakdowns) or "nothing",
        "citation": benchmark.citation or "none given",
        "licence": benchmark.licence or "none given",
        "rows": len(labelled.questions),
        "with a gold": sum(question.id in labelled.key for question in labelled.questions),
        "not askable": f"{absent:,}" + (" (an image is not there)" if absent else ""),
    }


def place(benchmark: Benchmark) -> str:
    """Return where the benchmark's rows come from by default."""
    if benchmark.source is None:
        return "your folder" if isinstance(benchmark, FolderBenchmark) else "embedded"
    config = f", {benchmark.source.config}" if benchmark.source.config else ""
    revision = "" if benchmark.source.revision == "main" else f"@{benchmark.source.revision}"
    return benchmark.source.hub + revision + config


def missing(question: Question) -> str | None:
    """Return the first image whose file does not exist, None if all may be there. Opens no image."""
    return next((str(image) for image in question.images if not _is_there(image)), None)


def _is_there(image: ImageLike) -> bool:
    if isinstance(image, Image):
        return True
    if isinstance(image, bytes):
        return bool(image)
    is_file = Path(image).is_file if isinstance(image, str) else getattr(image, "is_file", None)
    # What has no `is_file` is a member of an archive, which was found when the archive was listed.
    return bool(is_file()) if is_file else True


def render_prompt(question: Question, reader: PromptReader) -> RenderedPrompt:
    """Render the question with chat template, pixel limits and processor. Raises BadQuestion if it cannot be asked."""
    encoded = reader.encode(question, reader.processor, reader.min_pixels, reader.max_pixels, PLAIN)
    if not hasattr(reader.processor, "image_processor"):
        ids_L = encoded.ids_L
        return RenderedPrompt(visible(_decoded(reader.processor, ids_L)), (), len(ids_L), 0)
    originals = [open_image(image, question.id).size for image in question.images]
    # The processor's images follow the order in which the prompt names them; number them as the question lists them.
    numbers = [part["image"] for part in content(question.prompt, len(originals)) if part["type"] == "image"]
    sizes = {n: _size(image, reader.processor) for n, image in zip(numbers, encoded.images, strict=True)}
    text = _decoded(reader.processor.tokenizer, encoded.ids_L)
    seen = encoded.ids_L[encoded.types_L != 0]
    token = _decoded(reader.processor.tokenizer, seen[:1]) if len(seen) else reader.processor.image_token
    return RenderedPrompt(
        prompt=visible(_collapsed(text, token)),
        images=tuple(ImageSize(original, *sizes[i]) for i, original in enumerate(originals, 1)),
        text_tokens=int((encoded.types_L == 0).sum()),
        image_tokens=int((encoded.types_L != 0).sum()),
    )


def _decoded(tokenizer: Any, ids_L: Tensor) -> str:
    text: str = tokenizer.decode(ids_L.tolist(), clean_up_tokenization_spaces=False)
    return text


def _size(image: EncodedImage, processor: Any) -> tuple[tuple[int, int], int]:
    """Return width and height in pixels as the model gets the image, and the number of such tiles, 0 if it has none."""
    if image.pixel_values.dim() == 4:
        tiles, _, height, width = image.pixel_values.shape
        return (width, height), tiles
    patch = processor.image_processor.patch_size
    _, height, width = image.grid_thw.tolist()
    return (width * patch, height * patch), 0


def _collapsed(text: str, token: str) -> str:
    return re.sub(f"(?:{re.escape(token)})+", lambda run: f"{token} x {len(run[0]) // len(token)}", text)


def row_lines(question: Question, labelled: LabelledSet, reader: PromptReader) -> Iterator[str]:
    """Yield a row as lines of text: id, tags, prompt, image sizes, tokens, answer spec and gold.

    For a question that cannot be asked, the reason and its plain prompt stand in place of prompt, sizes and tokens.
    """
    yield f"id: {visible(question.id)}"
    if tags := labelled.tags.get(question.id):
        yield f"tags: {visible(_listed(tags))}"
    try:
        row = render_prompt(question, reader)
    except BadQuestion as error:
        yield f"cannot be asked: {visible(str(error))}"
        yield f"prompt, not rendered:\n{_indented(visible(question.prompt))}"
    else:
        yield f"prompt:\n{_indented(row.prompt)}"
        for number, (original, resized, tiles) in enumerate(row.images, 1):
            cut = f"{tiles} tile{'' if tiles == 1 else 's'} of " if tiles else ""
            yield f"image {number}: {_pixels(original)} -> {cut}{_pixels(resized)} pixels"
        yield f"tokens: {row.text_tokens} text + {row.image_tokens} image = {row.text_tokens + row.image_tokens}"
    yield f"answer: {visible(_listed(_given(question)))}"
    golds = labelled.key.get(question.id)
    yield f"gold (never shown to training): {visible(' | '.join(golds)) if golds else 'none'}"


def _given(question: Question) -> Mapping[str, Any]:
    """Return the fields of the question's spec that differ from their defaults, and its kind."""
    spec = asdict(question.spec)
    # The prompt shows it.
    del spec["question"]
    if spec["ordered"]:
        del spec["ordered"]
    if question.spec.kind == "named":
        # Everything that an answer might be, often hundreds of names.
        spec["choices"] = [*question.spec.choices[:2], f"... ({len(question.spec.choices)} in all)"]
    return {
        name: list(value) if name == "choices" else value for name, value in spec.items() if value not in (None, ())
    }


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _indented(text: str) -> str:
    return "\n".join("  | " + line for line in text.split("\n"))
