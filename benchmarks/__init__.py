"""Benchmarks by name, and the user's own data by folder. A new benchmark is a module and a line in `BENCHMARKS`."""

from __future__ import annotations

from pathlib import Path

from mm_spine.benchmarks import (
    aime,
    amc,
    capital_of,
    capitals,
    digits,
    flags,
    folder,
    gpqa,
    math500,
    mathvision,
    mathvista,
    medqa,
    medxpertqa,
    mmlu,
    mmmu,
    omnimedvqa,
    path_vqa,
    pmc_vqa,
    pubmedqa,
    scienceqa,
    slake,
    vqa_rad,
    vqav2,
)
from mm_spine.benchmarks.benchmark import Benchmark, Source
from mm_spine.benchmarks.tables import SUFFIXES
from mm_spine.words import PLUGIN_HINT, nearest

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        digits.BENCHMARK,
        flags.BENCHMARK,
        capitals.BENCHMARK,
        capital_of.BENCHMARK,
        aime.BENCHMARK_2024,
        aime.BENCHMARK_2025,
        amc.BENCHMARK,
        gpqa.BENCHMARK,
        math500.BENCHMARK,
        mathvision.BENCHMARK,
        mathvista.BENCHMARK,
        medqa.BENCHMARK,
        medxpertqa.BENCHMARK,
        mmlu.BENCHMARK,
        mmmu.BENCHMARK,
        omnimedvqa.BENCHMARK,
        path_vqa.BENCHMARK,
        pmc_vqa.BENCHMARK,
        pubmedqa.BENCHMARK,
        scienceqa.BENCHMARK,
        slake.BENCHMARK,
        vqa_rad.BENCHMARK,
        vqav2.BENCHMARK,
    )
}


def resolve(name_or_folder: str) -> Benchmark:
    """Return the benchmark of that name, or make one of the user's folder (`./digits` is always a folder).

    Raises ValueError for anything else; the message gives the nearest name and says how to name a folder.
    """
    if name_or_folder in BENCHMARKS:
        return BENCHMARKS[name_or_folder]
    path = Path(name_or_folder).expanduser()
    if name_or_folder.strip() and path.is_dir():
        return folder.folder_benchmark(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        raise ValueError(f"{name_or_folder!r} is a file; give its folder: {str(path.parent)!r}")
    found = "a file, not a folder" if path.is_file() else "neither a benchmark nor a folder"
    raise ValueError(
        f"{name_or_folder!r} is {found}; {nearest(name_or_folder, BENCHMARKS)}; {PLUGIN_HINT}. "
        "For your own data, give the path of a folder with questions.jsonl (.csv, .json, .parquet) and images."
    )


def register_benchmark(benchmark: Benchmark) -> None:
    """Add a benchmark under its name. Raises ValueError where that is taken, TypeError for what is no `Benchmark`."""
    if not isinstance(benchmark, Benchmark):
        raise TypeError(f"register_benchmark(...) takes a Benchmark, found {type(benchmark).__name__}")
    if benchmark.name in BENCHMARKS:
        raise ValueError(f"benchmark {benchmark.name!r} exists already; choose another name")
    BENCHMARKS[benchmark.name] = benchmark


__all__ = ["BENCHMARKS", "Benchmark", "Source", "register_benchmark", "resolve"]
