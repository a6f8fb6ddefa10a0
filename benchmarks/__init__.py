"""Benchmarks by name, and the user's own data by folder. A new benchmark is one module and one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from mm_spine.types import LabelledSet


@dataclass(frozen=True)
class Benchmark:
    """Where questions come from. `load(split)` gives one split, ValueError for a split that is not there.

    `default_model` is the folder of a model shipped for this benchmark, None where the user brings one; `habit`
    names the way a response answers, for benchmarks that study it.
    """

    name: str
    load: Callable[[str], LabelledSet]
    adapt_split: str
    held_out_split: str | None
    splits: tuple[str, ...]
    default_model: Path | None
    summary: str
    citation: str
    licence: str
    habit: Callable[[str], str] | None = None


def _digits_habit(text: str) -> str:
    habit: str = import_module("mm_spine.benchmarks.digits").habit(text)
    return habit


def _loader(module: str) -> Callable[[str], LabelledSet]:
    """The `load` of a module of this package, imported when first asked: the table itself costs nothing."""

    def load(split: str) -> LabelledSet:
        labelled: LabelledSet = import_module(f"mm_spine.benchmarks.{module}").load(split)
        return labelled

    return load


BENCHMARKS: dict[str, Benchmark] = {
    "digits": Benchmark(
        name="digits",
        load=_loader("digits"),
        adapt_split="adapt",
        held_out_split="held_out",
        splits=("tune", "adapt", "held_out"),
        default_model=Path(__file__).resolve().parent / "digits_model",
        summary="Arithmetic questions about real handwritten digits; embedded, offline.",
        citation="E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning "
        "Repository, https://doi.org/10.24432/C50P49; the copy in scikit-learn's load_digits.",
        licence="CC BY 4.0 (the images)",
        habit=_digits_habit,
    ),
}


def resolve(name_or_folder: str) -> Benchmark:
    """A known name, or a folder with `questions.jsonl` (`./digits` for a folder named as a benchmark).

    ValueError: neither; the nearest name and the way to give a folder are in the message.
    """
    if name_or_folder in BENCHMARKS:
        return BENCHMARKS[name_or_folder]
    folder = Path(name_or_folder).expanduser()
    if name_or_folder.strip() and folder.is_dir():
        own: Benchmark = import_module("mm_spine.benchmarks.own").benchmark(folder)
        return own
    nearest = get_close_matches(name_or_folder, BENCHMARKS, 1, 0.0)[0]
    found = "a file, not a folder" if folder.is_file() else "neither a benchmark nor a folder"
    raise ValueError(
        f"{name_or_folder!r} is {found}; the nearest benchmark is {nearest!r} "
        f"(known: {', '.join(sorted(BENCHMARKS))}). "
        "For your own data, give the path of a folder that holds questions.jsonl and its images."
    )
