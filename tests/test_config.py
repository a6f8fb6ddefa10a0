"""One config tree: layers in their order, overrides, and errors that name the key and the nearest valid one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mm_spine.config import ConfigError, PromptConfig, RunConfig, VotesConfig
from mm_spine.config.layers import build, expand_layer, merge, parse_overrides, read_yaml
from mm_spine.configs import shipped
from mm_spine.methods.table import METHODS, configure
from mm_spine.runs.plan import check, load_config
from mm_spine.words import nearest


def written(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, part in tree.items() for key, value in flat(part, f"{prefix}{name}.").items()}


# Layers


def test_a_prompt_may_be_written_as_before_it_was_a_section(tmp_path: Path) -> None:
    path = written(tmp_path, "prompt: short")
    assert load_config(path).prompt == PromptConfig(style="short")
    config = load_config(path, ["prompt.system=Be exact.", "prompt.template_arguments.enable_thinking=false"])
    wanted = {"style": "short", "system": "Be exact.", "template_arguments": {"enable_thinking": False}}
    assert config.prompt.model_dump() == wanted
    assert load_config(path, ["prompt=verbatim"]).prompt.style == "verbatim"
    assert RunConfig.model_validate({"prompt": "short"}).prompt.style == "short"


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("prompt: shrt", "prompt.style='shrt': Input should be 'reason', 'short' or 'verbatim'"),
        ("prompt: {sytem: x}", "prompt.sytem: no such key; did you mean 'prompt.system'|prompt.sytem: no such key"),
        ("prompt: {template_arguments: {tokenize: true}}", "tokenize is no variable of a chat template: leave it out"),
    ],
)
def test_a_wrong_prompt_is_named(tmp_path: Path, layer: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(written(tmp_path, layer))


def test_method_options_stand_below_the_yaml(tmp_path: Path) -> None:
    assert configure({"method": {"name": "ttrl-ear"}}).method.std == "population"
    config = load_config(written(tmp_path, "method: {name: ttrl-ear, kl_weight: 0.5}"))
    assert (config.method.std, config.method.kl, config.method.kl_weight) == ("population", "k3", 0.5)


def test_method_and_seed_arguments_stand_above_the_yaml_and_below_the_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, "method: {name: spine, share: 0.3}\nseed: 5\noptim: {lr: 0.1, steps: 7}")
    config = load_config(path, (), "ttrl", 6)
    assert (config.method.name, config.method.kl, config.method.share, config.seed) == ("ttrl", "k3", 0.3, 6)
    config = load_config(path, ["method.name=rent", "seed=8", "optim.lr=0.2"], "ttrl", 6)
    assert (config.method.name, config.seed, config.optim.lr, config.optim.steps) == ("rent", 8, 0.2, 7)


def test_seed_zero_given_beats_the_yaml(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "seed: 5"), (), None, 0).seed == 0


def test_an_overridden_method_brings_its_own_options() -> None:
    config = load_config("digits", ["method=low-entropy-mask"], "ttrl")
    assert (config.method.name, config.method.share) == ("low-entropy-mask", 0.8)


def test_the_method_may_be_written_short_in_yaml(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "method: ttrl")).method == configure({"method": {"name": "ttrl"}}).method


def test_a_benchmark_name_reads_its_yaml_and_an_empty_yaml_is_all_defaults(tmp_path: Path) -> None:
    given = yaml.safe_load(shipped("digits").read_text())
    assert load_config("digits").optim.lr == float(given["optim"]["lr"]) != RunConfig().optim.lr
    assert load_config(written(tmp_path, "")) == configure()


def test_a_folder_reads_no_yaml_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "seed: 99", "mine.yaml")
    assert load_config(str(tmp_path / "mine")).seed == 0
    assert load_config("./digits") == configure({"benchmark": "./digits"}), "a folder named as a benchmark"


def test_merge_keeps_both_arguments_and_replaces_lists_whole() -> None:
    base = {"optim": {"lr": 1.0, "betas": [1, 2, 3]}, "seed": 1}
    over = {"optim": {"betas": [4]}, "seed": {"a": 1}}
    assert merge(base, over) == {"optim": {"lr": 1.0, "betas": [4]}, "seed": {"a": 1}}
    assert base == {"optim": {"lr": 1.0, "betas": [1, 2, 3]}, "seed": 1}


# Overrides


def test_overrides_are_read_as_yaml_scalars_lists_and_null() -> None:
    tree = parse_overrides(
        ["optim.lr=1e-4", "optim.betas=[0.8, 0.9]", "threads=null", "model.lora.rank=4", "model.path=a=b", "split="]
    )
    assert tree == {
        "optim": {"lr": "1e-4", "betas": [0.8, 0.9]},
        "threads": None,
        "model": {"lora": {"rank": 4}, "path": "a=b"},
        "split": None,
    }
    config = build(tree)
    assert (config.optim.lr, config.optim.betas, config.model.lora.rank) == (1e-4, (0.8, 0.9), 4)


def test_the_last_of_two_overrides_wins() -> None:
    assert parse_overrides(["seed=1", "optim.lr=1", "seed=2"]) == {"seed": 2, "optim": {"lr": 1}}


def test_true_and_false_are_truth_values() -> None:
    config = load_config("digits", ["reporting.images=false", "engine.measure_update=true"])
    assert (config.reporting.images, config.engine.measure_update) == (False, True)


@pytest.mark.parametrize(
    "pair",
    [
        "optim.lr", "=1", "optim.lr=[1", "seed=!!python/name:os.system", "seed=\x00", "seed=2024-13-45",
        "seed=" + "[" * 5000,
    ],
)  # fmt: skip
def test_an_override_that_is_none_names_itself(pair: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides([pair])
    assert repr(pair) in str(caught.value)


# Wrong keys and values


@pytest.mark.parametrize(
    ("override", "found", "meant"),
    [
        ("sed=1", "sed", "seed"),
        ("optm.lr=1", "optm", "optim"),
        ("optim.rl=1", "optim.rl", "lr"),
        ("sampling.vots=8", "sampling.vots", "votes"),
        ("evaluation.max_new_token=8", "evaluation.max_new_token", "max_new_tokens"),
        ("method.bandscope=batch", "method.bandscope", "band_scope"),
        ("sampling.votes.stopp=decided", "sampling.votes.stopp", "stop"),
        ("sampling.tree.fork=3", "sampling.tree.fork", "forks"),
        ("sampling.vllm.tensor_paralel=2", "sampling.vllm.tensor_paralel", "tensor_parallel"),
        ("model.lora.rnk=8", "model.lora.rnk", "rank"),
        ("checkpoint.evry=8", "checkpoint.evry", "every"),
    ],
)
def test_an_unknown_key_at_any_depth_names_the_nearest_valid_one(override: str, found: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{found}: no such key; did you mean '{meant}'\? valid: ") as caught:
        load_config("digits", [override])
    assert "\n" not in str(caught.value)


def test_every_wrong_key_has_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", ["optim.rl=1", "sampling.votes=1", "seed=x"])
    assert [line.split(":")[0].split("=")[0] for line in str(caught.value).splitlines()] == [
        "sampling.votes.max",
        "optim.rl",
        "seed",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=x", "seed='x': Input should be a valid integer"),
        ("optim.steps=2.5", "optim.steps=2.5: Input should be a valid integer"),
        ("optim.steps=0", "optim.steps=0: Input should be greater than or equal to 1"),
        ("optim.lr=fast", "optim.lr='fast': Input should be a valid number"),
        ("optim.lr=0", "optim.lr=0: Input should be greater than 0"),
        ("optim.lr=.inf", "optim.lr=inf: Input should be a finite number"),
        ("optim.lr=.nan", "optim.lr=nan"),
        ("optim.warmup=1", "optim.warmup=1: Input should be less than 1"),
        ("optim.betas=[0.9]", "optim.betas.1"),
        ("optim.betas=[0.9, 1.0]", "optim.betas.1=1.0: Input should be less than 1"),
        ("optim=3", "optim=3: Input should be a valid dictionary"),
        ("method=3", "method=3: Input should be a valid dictionary"),
        ("model.path=12", "model.path=12: Input should be a valid string"),
        ("model.dtype=float16", "model.dtype='float16': Input should be 'float32' or 'bfloat16'"),
        ("engine.zero_stage=4", "engine.zero_stage=4: Input should be 0, 1, 2 or 3"),
        ("sampling.temperature=0", "sampling.temperature=0: Input should be greater than 0"),
        ("limit=0", "limit=0: Input should be greater than or equal to 1"),
        ("method.share=0", "method.share=0: Input should be greater than 0"),
        ("method.share=-0.2", "method.share=-0.2: Input should be greater than 0"),
        ("method.share=1.01", "method.share=1.01: Input should be less than or equal to 1"),
        ("sampling.votes=1", "sampling.votes.max=1: Input should be greater than or equal to 2"),
        ("sampling.votes=many", "sampling.votes.max='many': Input should be a valid integer"),
        ("sampling.votes=null", "sampling.votes=None: Input should be a valid dictionary"),
        ("sampling.votes.max.x=2", "sampling.votes.max: Input should be a valid integer"),
        (
            "sampling.votes.stop=decide",
            "sampling.votes.stop='decide': Input should be 'never', 'decided' or 'confident'",
        ),
        ("sampling.votes.level=1", "sampling.votes.level=1: Input should be less than 1"),
        ("sampling.votes.round=0", "sampling.votes.round=0: Input should be greater than or equal to 1"),
        ("sampling.tree.forks=0", "sampling.tree.forks=0: Input should be greater than or equal to 1"),
        ("sampling.vllm.memory_share=2", "sampling.vllm.memory_share=2: Input should be less than or equal to 1"),
        ("sampling.kv_cache_gb=0", "sampling.kv_cache_gb=0: Input should be greater than 0"),
        ("sampling.train_rollouts=0", "sampling.train_rollouts=0: Input should be greater than or equal to 1"),
        ("model={min_pixels: 9, max_pixels: 4}", "min_pixels=9 is more than max_pixels=4"),
        ("method.band_quantiles=[0.5, 0.5]", "band_quantiles=[0.5, 0.5]: the first must be below the second"),
        ("method.band_quantiles=[0.5, 0.1]", "band_quantiles=[0.5, 0.1]: the first must be below the second"),
        ("method.band_quantiles=[0.1, 1.5]", "method.band_quantiles.1=1.5: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_was_found(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", [override])
    assert str(caught.value).startswith(message) or f": {message}" in str(caught.value)


def test_the_whole_of_a_share_is_allowed() -> None:
    assert load_config("digits", ["method.share=1"]).method.share == 1.0


def test_training_on_more_rollouts_than_vote_is_refused() -> None:
    with pytest.raises(ConfigError, match="train_rollouts=9 is more than votes=8: lower it"):
        load_config("digits", ["sampling.votes=8", "sampling.train_rollouts=9"])
    config = load_config("digits", ["sampling.votes=2", "sampling.train_rollouts=2"])
    assert (config.sampling.votes.max, config.sampling.train_rollouts) == (2, 2)


@pytest.mark.parametrize(
    ("yaml_votes", "overrides", "votes"),
    [
        ("8", [], VotesConfig(max=8)),
        ("8", ["sampling.votes.stop=decided"], VotesConfig(max=8, stop="decided")),
        ("8", ["sampling.votes=32", "sampling.votes.stop=decided"], VotesConfig(max=32, stop="decided")),
        ("8", ["sampling.votes.stop=decided", "sampling.votes=32"], VotesConfig(max=32, stop="decided")),
        (
            "{max: 8, stop: confident, level: 0.9}",
            ["sampling.votes=9"],
            VotesConfig(max=9, stop="confident", level=0.9),
        ),
        ("{stop: decided}", ["sampling.votes.round=2"], VotesConfig(max=16, stop="decided", round=2)),
        ("8", ["sampling.votes={max: 12, round: 3}"], VotesConfig(max=12, round=3)),
    ],
)
def test_votes_merge_key_by_key_however_they_are_written(
    tmp_path: Path, yaml_votes: str, overrides: list[str], votes: VotesConfig
) -> None:
    path = written(tmp_path, f"sampling: {{votes: {yaml_votes}, train_rollouts: 2}}")
    assert load_config(path, overrides).sampling.votes == votes


def test_a_method_and_its_options_may_both_be_overridden() -> None:
    method = load_config("digits", ["method=ttrl", "method.kl_weight=0.5"]).method
    assert (method.name, method.kl, method.kl_weight) == ("ttrl", "none", 0.5)  # digits' YAML says kl: none


def test_a_nucleus_is_refused_in_training_and_allowed_in_evaluation() -> None:
    with pytest.raises(ConfigError, match=r"top_p=0.95: training samples with top_p 1"):
        load_config("digits", ["sampling.top_p=0.95"])
    config = load_config("digits", ["evaluation.top_p=0.95"])
    assert (config.evaluation.top_p, config.sampling.top_p) == (0.95, 1.0)


@pytest.mark.parametrize("name", ["spien", "ttlr", "randommask"])
def test_an_unknown_method_names_the_nearest(name: str) -> None:
    meant = {"spien": "spine", "ttlr": "ttrl", "randommask": "random-mask"}[name]
    for given in ({"method": name}, {"overrides": [f"method={name}"]}, {"overrides": [f"method.name={name}"]}):
        with pytest.raises(ConfigError, match=rf"method='{name}': no such method; did you mean '{meant}'\? valid: "):
            load_config("digits", **given)  # type: ignore[arg-type]


def test_nearest_lists_all_and_suggests_only_what_is_close() -> None:
    assert nearest("vots", ["votes", "top_p"]) == "did you mean 'votes'? valid: top_p, votes"
    assert nearest("zzz", ["votes", "top_p"]) == "valid: top_p, votes"


# Files


def test_yaml_is_loaded_safely(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    path = written(tmp_path, f"seed: !!python/object/apply:pathlib.Path.touch [{flag}]")
    with pytest.raises(ConfigError, match=r"run\.yaml: cannot be read as YAML: could not determine a constructor"):
        load_config(path)
    assert not flag.exists()


@pytest.mark.parametrize("text", ["- 1", "3", "false", "[]", "word"])
def test_yaml_that_is_no_mapping_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: expected keys and values, found (list|int|bool|str)"):
        load_config(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read as YAML"):
        load_config(str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read as YAML"):
        load_config(str(tmp_path / "binary.yaml"))
    with pytest.raises(ConfigError, match=r"broken\.yaml: cannot be read as YAML"):
        load_config(written(tmp_path, "optim: [", "broken.yaml"))


def test_keys_that_are_not_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Keys should be strings"):
        load_config(written(tmp_path, "optim: {1: 2}"))


def test_an_unknown_benchmark_in_yaml_names_the_nearest(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "benchmark: digts"))
    with pytest.raises(ValueError, match=r"'digts' is neither a benchmark nor a folder; did you mean 'digits'"):
        check(config)


@pytest.mark.parametrize("path", sorted(shipped("digits").parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_builds_for_every_method(path: Path) -> None:
    for name in METHODS:
        config = load_config(str(path), (), name)
        assert (config.benchmark, config.method.name) == (path.stem, name)
    assert load_config(path.stem) == load_config(str(path)), "by name or by file"
    given, resolved = flat(expand_layer(read_yaml(path))), flat(load_config(str(path)).model_dump())
    assert {key: float(value) if key == "optim.lr" else value for key, value in given.items()}.items() <= (
        resolved.items()
    )


# What check adds, before anything loads


def test_check_refuses_what_cannot_work_together(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{")
    for override, names in {
        "split=adopt": r"split='adopt': .*'adapt'",
        "evaluation.before=nowhere": "evaluation.before=nowhere: ",
        "engine.deepspeed=nowhere.json": "engine.deepspeed=nowhere.json: ",
        f"engine.deepspeed={tmp_path}/ds.json": r"engine.deepspeed=.*ds.json: ",
        "method=oracle": "method=oracle .*labels",
    }.items():
        with pytest.raises(ConfigError, match=names):
            check(load_config("digits", [override]))
    with pytest.raises(ConfigError, match="band_anchor=initial: .*'ttrl'"):
        check(load_config("digits", ["method.band_anchor=initial"], "ttrl"))
    assert check(load_config("digits", [], "oracle"), allow_labels=True).method.label_free is False


def test_one_question_at_a_time_wants_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("digits", ["scope=question"])
    check(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="scope=question runs on one process"):
        check(config)


# There and back


def test_the_resolved_configuration_round_trips_through_yaml(tmp_path: Path) -> None:
    overrides = [
        "optim.lr=3e-7",
        "method.band_quantiles=[0.05, 0.6]",
        "threads=1",
        "evaluation.before=runs/a",
        "model.path='123'",
        "reporting.images=false",
    ]
    for name in METHODS:
        config = load_config("digits", overrides, name, 7)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        assert load_config(str(path)) == config
        assert read_yaml(path) == config.model_dump(mode="json")


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("digits").optim.lr = 1.0  # type: ignore[misc]
