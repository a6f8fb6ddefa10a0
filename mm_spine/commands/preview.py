"""What a benchmark looks like before anything is run on it: its rows, and each prompt exactly as a model gets it."""

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
from mm_spine.policy.families import FAMILIES
from mm_spine.processors.chat import EncodedImage, content, encode, encode_text
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import ImageLike, LabelledSet, Question
from mm_spine.words import visible

QWEN_PIXELS = (3136, 12_845_056)
"""`min_pixels` and `max_pixels` in preprocessor_config.json of Qwen/Qwen2.5-VL-3B-Instruct and its larger kin."""


class Reading(NamedTuple):
    """The processor, or a text-only model's tokenizer, that prompts are shown through; its pixel limits; and a remark
    where it is not the model's own."""

    processor: Any
    min_pixels: int | None = None
    max_pixels: int | None = None
    remark: str = ""


class Size(NamedTuple):
    """An image in pixels (width, height), as it is and as the model gets it."""

    original: tuple[int, int]
    resized: tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """One question as a model gets it; `prompt` has runs of image tokens written as "token x number"."""

    prompt: str
    images: tuple[Size, ...]
    text_tokens: int
    image_tokens: int


def reading(benchmark: Benchmark, model: str | None = None) -> Reading:
    """The processor of `model`, else of the benchmark's own model, else the embedded one at Qwen2.5-VL's limits.

    ValueError: `model` is neither a folder nor a hub id with a processor or tokenizer.
    """
    if model is None and benchmark.default_model is None:
        remark = (
            "no --model: the embedded model's processor stands in, at Qwen2.5-VL's pixel limits. Image sizes and image "
            "tokens are Qwen2.5-VL's; the chat template and the count of text tokens (too high) are not your model's."
        )
        return Reading(_processor(str(MODEL_DIR)), *QWEN_PIXELS, remark)
    return Reading(_processor(model or str(benchmark.default_model)))


def _processor(name: str) -> Any:
    """As the model's family reads it; an unknown family's processor, if it has one."""
    import transformers

    place = Path(name).expanduser() if Path(name).exists() else name
    try:
        family = FAMILIES.get(transformers.AutoConfig.from_pretrained(place).model_type)
        reader = getattr(transformers, family.auto_processor if family else "AutoProcessor")
        return reader.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {name}: no processor there; give a model folder or hub id ({error})") from error


def facts(benchmark: Benchmark, split: str, labelled: LabelledSet, source: str | None = None) -> dict[str, Any]:
    """The benchmark in a few lines, and of this split: rows, rows with a gold, rows that cannot be asked."""
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
    """Where its rows come from unless another source is given."""
    if benchmark.source is None:
        return "embedded" if benchmark.default_model else "your folder"
    config = f", {benchmark.source.config}" if benchmark.source.config else ""
    revision = "" if benchmark.source.revision == "main" else f"@{benchmark.source.revision}"
    return benchmark.source.hub + revision + config


def missing(question: Question) -> str | None:
    """The first image that is plainly not there, without opening any; None where all may be."""
    return next((str(image) for image in question.images if not _is_there(image)), None)


def _is_there(image: ImageLike) -> bool:
    if isinstance(image, Image):
        return True
    if isinstance(image, bytes):
        return bool(image)
    is_file = Path(image).is_file if isinstance(image, str) else getattr(image, "is_file", None)
    return bool(is_file()) if is_file else True  # a member of an archive that was found there


def shown(question: Question, by: Reading) -> Shown:
    """`question` through the chat template, the pixel limits and the processor. BadQuestion: it cannot be asked."""
    if not hasattr(by.processor, "image_processor"):
        ids_L = encode_text(question, by.processor).ids_L
        return Shown(visible(_decoded(by.processor, ids_L)), (), len(ids_L), 0)
    originals = [open_image(image, question.id).size for image in question.images]
    encoded = encode(question, by.processor, by.min_pixels, by.max_pixels)
    numbers = [part["image"] for part in content(question.prompt, len(originals)) if part["type"] == "image"]
    patch = by.processor.image_processor.patch_size
    resized = {number: _size(image, patch) for number, image in zip(numbers, encoded.images, strict=True)}
    text = _decoded(by.processor.tokenizer, encoded.ids_L)
    return Shown(
        prompt=visible(_collapsed(text, by.processor.image_token)),
        images=tuple(Size(original, resized[i]) for i, original in enumerate(originals, 1)),
        text_tokens=int((encoded.types_L == 0).sum()),
        image_tokens=int((encoded.types_L != 0).sum()),
    )


def _decoded(tokenizer: Any, ids_L: Tensor) -> str:
    text: str = tokenizer.decode(ids_L.tolist(), clean_up_tokenization_spaces=False)
    return text


def _size(image: EncodedImage, patch: int) -> tuple[int, int]:
    _, height, width = image.grid_thw.tolist()
    return width * patch, height * patch


def _collapsed(text: str, token: str) -> str:
    return re.sub(f"(?:{re.escape(token)})+", lambda run: f"{token} x {len(run[0]) // len(token)}", text)


def row_lines(question: Question, labelled: LabelledSet, by: Reading) -> Iterator[str]:
    """One row for people: id and tags, the prompt, sizes, tokens, spec and gold; or why it cannot be asked."""
    yield f"id: {visible(question.id)}"
    if tags := labelled.tags.get(question.id):
        yield f"tags: {visible(_listed(tags))}"
    try:
        row = shown(question, by)
    except BadQuestion as error:
        yield f"cannot be asked: {visible(str(error))}"
        yield f"prompt, not rendered:\n{_indented(visible(question.prompt))}"
    else:
        yield f"prompt:\n{_indented(row.prompt)}"
        for number, (original, resized) in enumerate(row.images, 1):
            yield f"image {number}: {_pixels(original)} -> {_pixels(resized)} pixels"
        yield f"tokens: {row.text_tokens} text + {row.image_tokens} image = {row.text_tokens + row.image_tokens}"
    yield f"answer: {visible(_listed(_given(question)))}"
    golds = labelled.key.get(question.id)
    yield f"gold (never shown to training): {visible(' | '.join(golds)) if golds else 'none'}"


def _given(question: Question) -> Mapping[str, Any]:
    """The fields of the spec that say something."""
    spec = asdict(question.spec)
    if spec["ordered"]:
        del spec["ordered"]
    return {
        name: list(value) if name == "choices" else value for name, value in spec.items() if value not in (None, ())
    }


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _indented(text: str) -> str:
    return "\n".join("  | " + line for line in text.split("\n"))
