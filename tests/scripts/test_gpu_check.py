"""The check on a GPU without one: its plan, phases that fail or run out of time, its page, its wheels, exactness."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from gpu import check, page, plan, wheels
from gpu.plan import INSTALL, PHASES, TOTAL, Outcome, Phase, run_phases

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND, LAST = (
    Phase("first", "The first", 100, "m:f"),
    Phase("second", "The second", 100, "m:f"),
    Phase("last", "The last", 20, "m:f", fills=True),
)


class Clock:
    """A clock that a launched phase moves on by the seconds that it is told to take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Launched:
    """Ends phases as told, and keeps what seconds each was given."""

    def __init__(self, clock: Clock, **outcomes: Any) -> None:
        self.clock, self.outcomes, self.seconds = clock, outcomes, dict[str, float]()

    def __call__(self, phase: Phase, seconds: float) -> Outcome:
        self.seconds[phase.name] = seconds
        takes, outcome = self.outcomes.get(phase.name, (1.0, Outcome("ok", {})))
        self.clock.now += takes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def run(deadline: float = 540, **outcomes: Any) -> tuple[dict[str, Any], Launched, list[list[str]]]:
    """(records, what was launched, the names in each saved state)."""
    clock, saved = Clock(), list[list[str]]()
    launched = Launched(clock, **outcomes)
    records = run_phases((FIRST, SECOND, LAST), launched, lambda found: saved.append(list(found)), deadline, clock)
    return records, launched, saved


def test_the_limits_fit_into_nine_minutes_and_the_most_valuable_phase_comes_first() -> None:
    assert TOTAL <= 9 * 60
    assert INSTALL + sum(phase.seconds for phase in PHASES) <= TOTAL
    assert [phase.name for phase in PHASES] == [
        "machine", "exactness", "update", "trl", "sampler", "digits", "seeds",
    ]  # fmt: skip
    assert [phase.name for phase in PHASES if phase.fills] == ["seeds"]


def test_every_phase_names_a_function_of_a_module() -> None:
    for phase in PHASES:
        module, _, function = phase.run.partition(":")
        assert f"def {function}(setting: Setting)" in (ROOT / "scripts" / "gpu" / f"{module}.py").read_text()


def test_a_phase_that_fails_is_recorded_and_the_others_go_on() -> None:
    outcomes = {"first": (3.0, RuntimeError("no kernel")), "second": (4.0, Outcome("failed", {"tables": {}}, "worse"))}
    records, launched, saved = run(**outcomes)
    assert records["first"]["status"] == "failed" and records["first"]["error"] == "RuntimeError: no kernel"
    assert records["second"]["error"] == "worse" and records["second"]["seconds"] == 4.0
    assert records["last"]["status"] == "ok" and plan.failed(records)
    assert list(launched.seconds) == ["first", "second", "last"]
    assert saved == [["first"], ["first", "second"], ["first", "second", "last"]]


def test_the_last_phase_gets_the_time_that_is_left_and_the_others_only_theirs() -> None:
    records, launched, _ = run(first=(30.0, Outcome("ok", {})))
    assert launched.seconds == {"first": 100, "second": 100, "last": 540 - 31}
    assert not plan.failed(records) and records["second"]["limit_seconds"] == 100


def test_without_time_a_phase_is_not_started_which_is_a_failure_but_not_of_the_one_that_fills() -> None:
    records, launched, _ = run(deadline=105, first=(99.0, Outcome("ok", {})))
    assert list(launched.seconds) == ["first"]
    assert [records[name]["status"] for name in ("second", "last")] == ["not run", "skipped"]
    assert plan.failed(records) and records["second"]["error"] == "6 s were left"
    records, *_ = run(deadline=105, first=(1.0, Outcome("ok", {})), second=(99.0, Outcome("ok", {})))
    assert records["last"]["status"] == "skipped" and not plan.failed(records)


def test_nothing_follows_where_there_is_no_device() -> None:
    records, launched, _ = run(first=(1.0, Outcome("failed", {"no_device": True}, "torch finds no GPU here")))
    assert list(records) == list(launched.seconds) == ["first"]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs Python code in place of a phase's process; what it gets are the notes' path and the seconds."""

    real = plan.run_limited

    def launch(code: str, seconds: float = 30.0) -> Outcome:
        def instead(command: list[str], limit: float, log: Any) -> int | None:
            return real([sys.executable, "-c", code, *command[4:]], limit, log)

        monkeypatch.setattr(plan, "run_limited", instead)
        return plan.launcher(tmp_path, ())(FIRST, seconds)

    yield launch


WRITE = "import sys, json; open(sys.argv[1], 'w').write(json.dumps({0})); "


@pytest.mark.slow
def test_a_process_that_ends_well_fails_or_takes_too_long(worker: Any) -> None:
    assert worker(WRITE.format({"tables": {"a": []}})) == Outcome("ok", {"tables": {"a": []}})
    assert worker(WRITE.format({"skipped": "no trl"})) == Outcome("skipped", {}, "no trl")
    assert worker(WRITE.format({"says": ["x"], "failed": "why"}) + "sys.exit(1)") == Outcome(
        "failed", {"says": ["x"]}, "why"
    )
    broken = worker("import sys; print('half'); sys.exit('a library said no')")
    assert broken.status == "failed" and broken.error == "exit code 1; the last line of its log: a library said no"
    late = worker(WRITE.format({"says": ["measured"]}) + "sys.stdout.flush(); import time; time.sleep(60)", 3.0)
    assert late.status == "out of time" and late.result == {"says": ["measured"]}


def record(**phases: Any) -> dict[str, Any]:
    return {"command": "scripts/gpu_check.sh --output out", "started": "then", "commit": None, "rehearsal": False,
            "limit_seconds": 540, "seconds": 12.3, "wheels": [], "phases": phases}  # fmt: skip


def test_the_page_shows_tables_of_unequal_rows_errors_and_what_was_carried() -> None:
    rows = [{"rows": 8, "tokens/s": 1234.5}, {"rows": 256, "": "does not fit: a | b"}]
    phase = {"title": "Sampler", "status": "out of time", "error": "ended", "seconds": 70.1, "limit_seconds": 70,
             "result": {"tables": {"Rates": rows}, "says": ["One call."]}}  # fmt: skip
    said = page.page({**record(sampler=phase), "wheels": ["a.whl", "b.whl"]})
    assert "| rows | tokens/s |  |\n| --- | --- | --- |\n| 8 | 1,234 |  |\n| 256 |  | does not fit: a \\| b |" in said
    assert "**Out of time**: ended" in said and "One call." in said and "a.whl, b.whl" in said
    assert "rehearsal" not in said.lower()
    assert page.REHEARSAL in page.page({**record(), "rehearsal": True, "phases": {}})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (True, "yes"),
        (False, "**no**"),
        (12345, "12,345"),
        (0.0, "0"),
        (1.2345e-6, "1.23e-06"),
        (0.5, "0.5"),
    ],
)
def test_cells(value: Any, shown: str) -> None:
    assert page._cell(value) == shown


GROUPS = (
    wheels.Group("needed", ("a", "b"), "all"),
    wheels.Group("large", ("c", "d"), "more"),
    wheels.Group("small", ("d", "e"), "peers"),
)


def test_wheels_are_taken_group_by_group_as_far_as_they_fit() -> None:
    mib = 2**20
    sizes = {"a": 10 * mib, "b": 10 * mib, "c": 40 * mib, "d": mib, "e": mib}
    assert wheels.chosen(GROUPS, (), sizes) == (["a", "b", "d", "e"], [GROUPS[1]])
    without = {name: size for name, size in sizes.items() if name != "c"}
    assert wheels.chosen(GROUPS, ("c",), without) == (["a", "b", "d", "e"], [])
    with pytest.raises(wheels.Refused, match=r"70\.00 MiB of wheels, and the limit is 60\.00 MiB; largest: b 60\.00"):
        wheels.chosen(GROUPS, (), {**sizes, "b": 60 * mib})


def test_every_wheel_is_pinned_and_each_torch_has_its_torchvision() -> None:
    for torch_version in wheels.TORCHVISION:
        pins = wheels.pins(torch_version)
        assert all(name in pins for group in wheels.GROUPS for name in group.packages)
        assert pins["torchvision"] == wheels.TORCHVISION[torch_version]
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert wheels.TORCHVISION[constraints["torch"].rpartition(".")[0]] == constraints["torchvision"]
    with pytest.raises(wheels.Refused, match=r"--torch 2\.9: one of 2\.11, 2\.12, 2\.13"):
        wheels.pins("2.9")


def test_what_cannot_be_done_is_a_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpu.json").write_text("{}")
    assert check.main(["--output", str(tmp_path)]) == 2
    assert "it holds a check; name another folder" in capsys.readouterr().err
    assert check.main(["--fetch", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert check.main(["--output", str(tmp_path / "out"), "--wheels", str(tmp_path)]) == 2
    assert "no wheel there; scripts/gpu_check.sh --fetch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        check.parse(["--output", "out", "--patience", "2"])


def test_a_check_writes_its_record_after_every_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def launcher(output: Path, flags: list[str]) -> Any:
        def launch(phase: Phase, seconds: float) -> Outcome:
            known = output / "gpu.json"
            seen.append(list(json.loads(known.read_text())["phases"]) if known.exists() else [])
            return Outcome("failed" if phase.name == "trl" else "ok", {"says": [phase.name]}, None)

        return launch

    monkeypatch.setattr(check, "launcher", launcher)
    assert check.main(["--output", str(tmp_path), "--only", "exactness", "trl", "--rehearse"]) == 1
    assert seen == [[], ["exactness"]]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert list(written["phases"]) == ["exactness", "trl"] and written["rehearsal"]
    assert "## Exactness on the device" in (tmp_path / "gpu.md").read_text()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_exactness_is_measured_on_the_cpu_and_a_wrong_attention_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu import exact, resume
    from gpu.notes import Failed, Notes, Setting

    from mm_spine.policy.kernels import KERNELS, PlainKernel

    monkeypatch.setattr(exact, "cases", lambda rehearsal: [("tiny qwen3_vl", "float32")])
    monkeypatch.setattr(resume, "compare", lambda setting, dtype: None)
    setting = Setting(torch.device("cpu"), True, Notes(tmp_path / "notes.json", 60.0))
    exact.measure(setting)
    setting.notes.finish()
    tables = json.loads((tmp_path / "notes.json").read_text())["tables"]
    packed, sampler = tables.values()
    assert [row["case"] for row in packed] == ["tiny qwen3_vl, float32, flash_cpu", "tiny qwen3_vl, float32, plain"]
    assert all(row["within 3 x plain"] for row in (*packed, *sampler))
    assert 0 < packed[0]["gradients relative to their norms, ours"] < 1e-4

    class Wrong(PlainKernel):
        def forward(self, *arguments: Any) -> Any:
            out, lse = super().forward(*arguments)
            return 1.001 * out, lse

    monkeypatch.setitem(KERNELS, "plain", Wrong())
    exact.measure(wrong := Setting(torch.device("cpu"), True, Notes(tmp_path / "wrong.json", 60.0)))
    with pytest.raises(Failed, match="^tiny qwen3_vl, float32, plain: further from float64 than 3 times"):
        wrong.notes.finish()


def test_the_model_of_the_check_has_the_shape_of_qwen2_5_vl_3b() -> None:
    from gpu import shapes

    config = shapes.make_config(shapes.REAL)
    text, vision = config.text_config, config.vision_config
    assert (text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.vocab_size) == (
        36, 2048, 11008, 151_936,
    )  # fmt: skip
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (16, 2, 128)
    assert text.rope_parameters["mrope_section"] == [16, 24, 24] and config.tie_word_embeddings
    assert (vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads) == (32, 1280, 3420, 16)
    assert vision.out_hidden_size == 2048 and vision.window_size == 112
    assert vision.fullatt_block_indexes == [7, 15, 23, 31]
