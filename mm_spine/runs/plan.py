"""The plan of a run: its configuration, and every check that needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mm_spine import distributed, files
from mm_spine.benchmarks import BENCHMARKS, Benchmark, resolve
from mm_spine.config import ConfigError, RunConfig
from mm_spine.config.layers import merge, parse_overrides, read_config
from mm_spine.configs import shipped
from mm_spine.integrations import lmms_hook
from mm_spine.methods.method import Method
from mm_spine.methods.table import configure, for_method
from mm_spine.policy.folder import check_model_folder
from mm_spine.runs.folder import check_writable
from mm_spine.runs.listeners.trackers import registry as trackers
from mm_spine.runs.own import applies_to, own_values
from mm_spine.sampling.registry import check_sampler, check_sampling
from mm_spine.types import LabelledSet, Question
from mm_spine.words import nearest


class ModelNotSet(ConfigError):
    """Report a run that names no model, on a benchmark that ships none."""


def load_config(
    target: str, overrides: Sequence[str] = (), method: str | None = None, seed: int | None = None
) -> RunConfig:
    """Resolve the configuration of a benchmark's name, a folder, or a YAML file.

    Later wins: the method's own options, the YAML (own.yaml for a folder), `method` and `seed`, the overrides. Raises
    ConfigError.
    """
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        layer = read_config(path)
    else:
        # A folder gets own.yaml, even when its last part is the name of a benchmark.
        known = shipped(target) if target in BENCHMARKS else None
        named = read_config(known) if known else {}
        values = own_values(parse_overrides(overrides)).layer if applies_to(target) else named
        layer = merge(values, {"benchmark": target})
    if method is not None:
        layer = merge(layer, {"method": {"name": method}})
    if seed is not None:
        layer = merge(layer, {"seed": seed})
    return configure(layer, parse_overrides(overrides))


@dataclass(frozen=True, eq=False)
class Splits:
    """The questions of a run: the split it adapts to, and the held-out split if that is evaluated too."""

    adapted: LabelledSet
    held_out: LabelledSet | None = None

    @property
    def questions(self) -> list[Question]:
        """All questions of both splits."""
        return [*self.adapted.questions, *(self.held_out.questions if self.held_out else ())]

    @property
    def problems(self) -> list[str]:
        """One sentence for each row of the data that lost something."""
        return [*self.adapted.problems, *(self.held_out.problems if self.held_out else ())]

    def evaluated(self, limit: int | None) -> Mapping[str, LabelledSet]:
        """Split -> what of it is evaluated: the first `limit` questions of the adapted split, all held-out ones."""
        held_out = {} if self.held_out is None else {"held_out": self.held_out}
        return {"adapted": first_questions(self.adapted, limit), **held_out}


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked run: nothing can go wrong any more that shows before a model is fetched and loaded.

    `model` is a folder or a hub id.
    """

    config: RunConfig
    benchmark: Benchmark
    method: Method
    model: str

    def load(self, split: str) -> LabelledSet:
        """Load the questions of `split` that the run asks, from the configured source."""
        labelled = self.benchmark.load(split, self.config.source, self.config.prompt.style)
        return first_questions(labelled, self.config.limit)

    def load_splits(self) -> Splits:
        """Load the split to adapt to, and the held-out one unless the run leaves it out."""
        benchmark, config = self.benchmark, self.config
        adapted = self.load(config.split or benchmark.adapt_split)
        wanted = config.evaluation.held_out and config.scope == "dataset" and config.split is None
        if not wanted or benchmark.held_out_split is None:
            return Splits(adapted)
        held_out = benchmark.load(benchmark.held_out_split, config.source, config.prompt.style)
        return Splits(adapted, first_questions(held_out, config.evaluation.limit))


def first_questions(labelled: LabelledSet, limit: int | None) -> LabelledSet:
    """Return the set with its first `limit` questions only, all of them for None."""
    return labelled if limit is None else replace(labelled, questions=labelled.questions[:limit])


def check(config: RunConfig, allow_labels: bool = False, whole_model: bool = True) -> Plan:
    """Check all that can be checked before a model loads. Raises ConfigError, ModelError or ValueError.

    A model's files are checked only if the `whole_model` is to be there.
    """
    benchmark = resolve(config.benchmark)
    config, method = for_method(config, None)
    if not method.label_free and not allow_labels:
        # The reward of a control refuses to be made without the labels: this raises.
        method.reward(config.method)
    if method.check is not None:
        method.check(config.method)
    if config.split is not None and config.split not in benchmark.splits:
        raise ConfigError(
            f"split={config.split!r}: {benchmark.name} has no such split; {nearest(config.split, benchmark.splits)}"
        )
    _check_files(config)
    if config.source is not None and benchmark.source is None:
        raise ConfigError(f"source={config.source!r}: {benchmark.name} is not read from a release; leave it out")
    if config.method.band_anchor == "initial" and method.bounds is None:
        raise ConfigError(f"method.band_anchor=initial: method {config.method.name!r} has no band")
    if config.scope == "question" and distributed.launched_processes() > 1:
        raise ConfigError("scope=question runs on one process: start one run per GPU, each with its own questions")
    if config.scope == "question" and config.guard.settle is not None:
        raise ConfigError("guard.settle is for scope=dataset: with scope=question set optim.steps, or leave it out")
    _check_partition(config)
    check_sampler(config.sampling.backend)
    lmms_hook.check(config)
    trackers.check(config.reporting)
    model = config.model.path or benchmark.default_model
    if model is None:
        message = f"model.path is not set: benchmark {benchmark.name!r} ships no model of its own"
        raise ConfigError(f"{message}; {benchmark.model_hint}") if benchmark.model_hint else ModelNotSet(message)
    if whole_model and Path(model).exists():
        check_model_folder(Path(model))
    check_sampling(config, Path(model) if Path(model).exists() else None)
    return Plan(config, benchmark, method, str(model))


def partitions(config: RunConfig) -> bool:
    """Whether ranks divide the weights so that none holds them all. One process has nobody to divide them with."""
    return config.engine.zero_stage == 3 and not config.engine.keep_whole and distributed.launched_processes() > 1


def _check_partition(config: RunConfig) -> None:
    """Raise ConfigError for what reads or copies whole weights where no rank is to hold them."""
    if config.engine.keep_whole:
        return
    if config.engine.zero_stage != 3:
        raise ConfigError("engine.keep_whole=false: only engine.zero_stage=3 divides the weights; set that too")
    wrong = {
        "sampling.backend=hf": config.sampling.backend == "hf",
        "model.train_merger=true": config.model.train_merger,
        "engine.measure_update=true": config.engine.measure_update,
        "sampling.vllm.tensor_parallel above 1": config.sampling.vllm.tensor_parallel > 1,
        "evaluation.lmms_eval": bool(config.evaluation.lmms_eval),
    }
    for key, used in wrong.items():
        if used:
            advice = "set sampling.backend=vllm" if key.startswith("sampling") else "leave it out"
            raise ConfigError(f"engine.keep_whole=false: {key} reads whole weights, which no rank holds; {advice}")


def _check_files(config: RunConfig) -> None:
    """Check the files and folders that the configuration names."""
    before, deepspeed = config.evaluation.before, config.engine.deepspeed
    if before is not None and not (before / "summary.json").is_file():
        raise ConfigError(f"evaluation.before={before}: no finished run there (no summary.json)")
    if config.cache.folder is not None:
        check_writable(config.cache.folder, "cache.folder=")
    if deepspeed is not None:
        try:
            files.read_json(deepspeed)
        except (OSError, ValueError) as error:
            raise ConfigError(f"engine.deepspeed={deepspeed}: cannot be read as JSON: {error}") from error
