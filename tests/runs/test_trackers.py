"""Trackers: what they hold is what the run's files say, and neither they nor their failure change the run."""

from __future__ import annotations

import html
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import small_config, write_data, write_model
from tiny import tiny_image

from mm_spine import files
from mm_spine.config import ConfigError, ReportingConfig
from mm_spine.config.layers import build
from mm_spine.policy.model import Policy
from mm_spine.runs.listeners.listener import Listener, Listeners, Step, StepTiming
from mm_spine.runs.listeners.trackers import registry
from mm_spine.runs.listeners.trackers import wandb as wandb_tracker
from mm_spine.runs.listeners.trackers.tensorboard import markdown
from mm_spine.runs.listeners.trackers.tracker import HEADINGS, TrackedResponse, TrackerListener, flat
from mm_spine.runs.plan import check
from mm_spine.runs.run import run
from mm_spine.types import Answer, AnswerSpec, Group, Question, Rollout, StepReport, Vote

pytestmark = pytest.mark.slow

PACKAGES = {name: row.package for name, row in registry.TRACKERS.items()}
INSTALL = 'pip install -c constraints.txt "mm-spine[trackers]"'


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tracked")
    model, data = write_model(folder / "model"), write_data(folder / "data")
    return small_config({"benchmark": str(data), "model": {"path": str(model)}})


def with_trackers(config: Any, *names: str, **reporting: Any) -> Any:
    return config.model_copy(update={"reporting": config.reporting.model_copy(update={"trackers": names, **reporting})})


def tracked_by(name: str, config: Any, folder: Path, **reporting: Any) -> Path:
    """The folder of a run with one tracker that nothing outside this machine may hear of."""
    pytest.importorskip(PACKAGES[name], reason=f"{name} is not installed")
    assert run(with_trackers(config, name, **reporting), folder / name) is not None
    return folder / name


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """A home folder and an environment with everything that would lead outside, and the attempts to get there."""
    reached: list[Any] = []
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *address, **how: reached.append(address))
        for name in ("WANDB_MODE", "WANDB_API_KEY", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NETRC"):
            patch.delenv(name, raising=False)
        for name, value in (("TRACKIO_SPACE_ID", "me/space"), ("TRACKIO_SERVER_URL", "http://192.0.2.1/")):
            patch.setenv(name, value)
        patch.setenv("HF_TOKEN", "hf_none")
        patch.setattr("huggingface_hub.whoami", lambda *who, **how: reached.append("whoami"))
        patch.setenv("HOME", str(home))
        yield reached
    assert reached == []
    files = [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in path.parts]
    assert files == [], "nothing is written outside the run's folder"


@pytest.fixture(scope="module")
def plain(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert run(config, folder) is not None
    return folder


@pytest.fixture(scope="module")
def tensorboard(config: Any, sealed: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked_by("tensorboard", config, tmp_path_factory.mktemp("tb"))


@pytest.fixture(scope="module")
def wandb(config: Any, sealed: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked_by("wandb", config, tmp_path_factory.mktemp("wandb"))


@pytest.fixture(scope="module")
def trackio(config: Any, sealed: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked_by("trackio", config, tmp_path_factory.mktemp("trackio"))


def expected(run: Path) -> dict[str, dict[int, float]]:
    """Every curve by name, step by step, from the run's own files."""
    curves: dict[str, dict[int, float]] = {}

    def add(group: str, row: Mapping[str, Any], step: int) -> None:
        for name, value in flat({key: value for key, value in row.items() if key != "step"}):
            curves.setdefault(f"{group}/{name}", {})[step] = value

    for group, name in (("steps", "steps"), ("timings", "timings"), ("accuracy", "evaluation/steps")):
        for row in files.read_json_lines(run / f"{name}.jsonl"):
            add(group, row, row["step"])
    summary = files.read_json(run / "summary.json")
    for split, block in (("adapted", summary), ("held_out", summary["held_out"])):
        add(f"evaluation/{split}", block["before"], 0)
        add(f"evaluation/{split}", block["after"], summary["steps"])
    return curves


def assert_holds(curves: Mapping[str, Mapping[int, float]], run: Path, tolerance: float = 0.0) -> None:
    wanted = expected(run)
    assert curves.keys() == wanted.keys()
    assert len(wanted) > 50 and len(wanted["steps/loss"]) == 3 and len(wanted["accuracy/label_accuracy"]) == 3
    for name, points in wanted.items():
        assert curves[name] == pytest.approx(points, rel=tolerance, abs=0.0), name


# TensorBoard


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(run: Path) -> dict[str, dict[int, float]]:
    found = events(run)
    tags = found.Tags()["scalars"]
    assert all(len({e.step for e in found.Scalars(tag)}) == len(found.Scalars(tag)) for tag in tags), "a step twice"
    return {tag: {e.step: e.value for e in found.Scalars(tag)} for tag in tags}


def test_tensorboard_holds_every_figure(tensorboard: Path) -> None:
    assert_holds(scalars(tensorboard), tensorboard, tolerance=1e-6)


def test_tensorboard_shows_responses_with_images(tensorboard: Path) -> None:
    found = events(tensorboard)
    tables = found.Tensors("completions/text_summary")
    assert [table.step for table in tables] == [0, 1, 2]
    text = tables[0].tensor_proto.string_val[0].decode()
    assert len(text.splitlines()) == 2 + 8
    assert text.splitlines()[0] == "| row | question | rollout | answer | vote | reward | response |"
    assert sorted(found.Tags()["images"]) == [f"completions/row_{n}" for n in range(1, 9)]
    image = found.Images("completions/row_1")[0]
    assert image.encoded_image_string.startswith(b"\x89PNG") and image.width in (28, 56, 84)


def test_no_tracker_gets_an_image_that_may_not_be_shown(config: Any, sealed: list[Any], tmp_path: Path) -> None:
    run = tracked_by("tensorboard", config, tmp_path, images=False, tracked_completions=2)
    found = events(run)
    assert found.Tags()["images"] == []
    text = found.Tensors("completions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert len(text.splitlines()) == 2 + 2


@pytest.mark.parametrize(
    "text",
    ["a | b", "<img src=x onerror=y>", "![x](http://a.example/b.png)", "**bold** `code`", "# head", "&lt;"],
)
def test_text_of_a_markdown_cell_is_shown_as_it_is(text: str) -> None:
    util = pytest.importorskip("tensorboard.plugin_util", reason="tensorboard is not installed")
    page = util.markdown_to_safe_html(f"| head | other |\n|---|---|\n| {markdown(text)} | end |")
    cell = page.partition("<td>")[2].partition("</td>")[0]
    assert html.unescape(cell) == text and "<" not in cell and page.count("<td>") == 2
    assert markdown("one\ntwo") == "one<br>two"


class Stopping(Listener):
    """Has the run stopped after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, step: Step) -> None:
        if step.report.step + 1 == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_resumed_run_goes_on_at_its_step(config: Any, sealed: list[Any], tensorboard: Path, tmp_path: Path) -> None:
    asked = with_trackers(config, "tensorboard")
    asked = asked.model_copy(update={"checkpoint": asked.checkpoint.model_copy(update={"every": 1})})
    output = tmp_path / "run"
    assert run(asked, output, listener=Stopping(2)) is None
    assert set(scalars(output)["steps/loss"]) == {0, 1}
    shutil.rmtree(output / "checkpoints" / "step_000002")  # as after a crash: step 1 is reported twice
    assert run(asked, output, resume=True) is not None
    assert_holds(scalars(output), output, tolerance=1e-6)
    assert scalars(output)["steps/loss"] == scalars(tensorboard)["steps/loss"]


# Weights & Biases


def history(run: Path) -> list[dict[str, Any]]:
    """The logged rows, once they are all there: wandb's own process may still be writing."""
    for _ in range(300):
        rows = saved(run)
        if any("accuracy/questions" in row and row["step"] == 2 for row in rows):
            return rows
        time.sleep(0.1)
    raise AssertionError(f"wandb has written {len(rows)} rows, the last one is missing")


def saved(run: Path) -> list[dict[str, Any]]:
    """The rows that are there, by wandb's own reader."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
    store, rows = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    store.close()
    return rows


def test_wandb_goes_offline_and_holds_every_figure(wandb: Path) -> None:
    curves: dict[str, dict[int, float]] = {}
    for row in history(wandb):
        for name, value in row.items():
            if "/" in name and not name.startswith("completions/"):
                curves.setdefault(name, {})[int(row["step"])] = value
    assert_holds(curves, wandb)


def test_wandb_holds_tables_with_their_images_in_the_folder(wandb: Path) -> None:
    tables = {row["step"]: row for row in history(wandb) if any(name.startswith("completions") for name in row)}
    assert set(tables) == {0, 1, 2}
    staged = [json.loads(p.read_text()) for p in (wandb / "wandb" / "artifacts").rglob("*") if _is_json_table(p)]
    assert len(staged) == 3
    assert all(table["columns"] == [*HEADINGS, "image 1"] and len(table["data"]) == 8 for table in staged)
    images = [p for p in (wandb / "wandb" / "artifacts").rglob("*") if p.is_file() and p.read_bytes()[:4] == b"\x89PNG"]
    assert len(images) == 3 * 8


def _is_json_table(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(b'{"')


def test_wandb_knows_nothing_of_machine_and_code(wandb: Path) -> None:
    files = [path.name for path in (wandb / "wandb").glob("offline-run-*/files/**/*") if path.is_file()]
    assert files and all(name.endswith(".table.json") for name in files), files


@pytest.mark.parametrize(
    "asked, known, there, mode",
    [
        (None, False, True, "offline"),
        ("online", False, True, "offline"),
        ("shared", False, True, "offline"),
        ("offline", True, True, "offline"),
        ("dryrun", True, True, "offline"),
        ("disabled", False, True, "disabled"),
        (None, True, True, "online"),
        ("online", True, True, "online"),
        ("online", True, False, "offline"),
    ],
)
def test_wandb_never_asks_for_credentials_nor_waits_for_a_server(
    asked: str | None, known: bool, there: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb_tracker, "answers", lambda url: there)
    if asked:
        monkeypatch.setenv("WANDB_MODE", asked)
    assert wandb_tracker.wandb_mode(SimpleNamespace(is_authenticated=known, api_url="http://127.0.0.1:1")) == mode


def test_a_server_answers_where_something_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(address: tuple[str, int], timeout: float) -> Any:
        if address not in {("there.example", 443), ("there.example", 8080)}:
            raise ConnectionRefusedError
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(wandb_tracker, "getproxies", lambda: {"no": "localhost"})
    found = {
        url: wandb_tracker.answers(url) for url in ("https://there.example", "http://there.example:8080", "http://x")
    }
    assert found == {"https://there.example": True, "http://there.example:8080": True, "http://x": False}
    monkeypatch.setattr(wandb_tracker, "getproxies", lambda: {"https": "http://proxy:1"})
    assert wandb_tracker.answers("http://x"), "a proxy may know the way"


def test_a_run_keeps_its_name_on_a_server(tmp_path: Path) -> None:
    first = wandb_tracker.run_id(tmp_path)
    assert first == wandb_tracker.run_id(tmp_path) and len(first) == 16
    assert first != wandb_tracker.run_id(tmp_path / "other")


# trackio


def logged(run: Path) -> list[tuple[int, dict[str, Any]]]:
    with closing(sqlite3.connect(run / "trackio" / "mm-spine.db")) as database:
        found = database.execute("select step, metrics from metrics order by id").fetchall()
    return [(step, json.loads(metrics)) for step, metrics in found]


def test_trackio_holds_every_figure(trackio: Path) -> None:
    curves: dict[str, dict[int, float]] = {}
    for step, row in logged(trackio):
        for name, value in row.items():
            if name != "completions":
                curves.setdefault(name, {})[step] = value
    assert_holds(curves, trackio)


def test_trackio_holds_tables_with_images(trackio: Path) -> None:
    tables = {step: row["completions"]["_value"] for step, row in logged(trackio) if "completions" in row}
    assert set(tables) == {0, 1, 2}
    assert list(tables[0][0]) == [*HEADINGS, "images"] and len(tables[0]) == 8
    (image,) = tables[0][0]["images"]
    with Image.open(trackio / "trackio" / "media" / image["file_path"]) as opened:
        assert opened.format == "PNG"


def test_a_second_run_of_a_process_has_a_folder_of_its_own(trackio: Path, tmp_path: Path, sealed: list[Any]) -> None:
    config = build({"reporting": {"trackers": ["trackio"]}})
    opened = registry.open_trackers(tmp_path, config)["trackio"]
    opened.figures({"x": 1.5}, 7)
    opened.close()
    assert logged(tmp_path) == [(7, {"x": 1.5})]
    assert not any("x" in row for _, row in logged(trackio))


# The run goes on as it would


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_tracker_changes_no_bit(name: str, plain: Path, request: pytest.FixtureRequest) -> None:
    output = request.getfixturevalue(name)
    names = ["steps.jsonl", "rollouts/step_000002.parquet", "adapted/model.safetensors", "evaluation/after.jsonl"]
    assert [n for n in names if (output / n).read_bytes() != (plain / n).read_bytes()] == []


def test_trackers_are_off_unless_asked_for(plain: Path) -> None:
    assert build({}).reporting.trackers == ()
    assert not any((plain / name).exists() for name in PACKAGES)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_missing_package_is_said_before_a_model_loads(
    name: str, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never_load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded before the check")

    monkeypatch.setattr(registry, "find_spec", lambda package: None)
    monkeypatch.setattr(Policy, "load", never_load)
    with pytest.raises(ConfigError) as error:
        run(with_trackers(config, name), tmp_path / "run")
    assert str(error.value) == f"reporting.trackers: {name} is not installed; {INSTALL}, or leave it out"
    assert not (tmp_path / "run").exists()
    check(config)


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(ConfigError, match=r"reporting\.trackers\.0='mlflow'.*'tensorboard', 'wandb' or 'trackio'"):
        build({"reporting": {"trackers": ["mlflow"]}})


class Heard:
    """A tracker that records every event, and fails at its `fails`-th event."""

    def __init__(self, sends: bool = False, fails: int = -1) -> None:
        self.sends, self.fails = sends, fails
        self.events: list[tuple[Any, ...]] = []

    def _note(self, *event: Any) -> None:
        if len(self.events) == self.fails:
            raise OSError("the disk is full")
        self.events.append(event)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        self._note("scalars", dict(figures), step)

    def responses(self, rows: Sequence[TrackedResponse], step: int) -> None:
        self._note("responses", [len(row.images) for row in rows], step)

    def close(self) -> None:
        self._note("close")


def group() -> Group:
    question = Question("q", (tiny_image(0), tiny_image(1)), "?", AnswerSpec("integer"))
    rollout = Rollout("q", 0, (1,), "1", np.zeros(1, np.float32), None, "stop")
    vote, parsed = Vote("1", 1.0, {"1": 1}, 1.0, 1), (Answer("1", "1"),)
    return Group(question, (rollout,), ("1",), vote, torch.ones(1), parsed=parsed)


def step_of(number: int) -> Step:
    return Step(StepReport(number, loss=0.5), StepTiming(number, 1.0, 0.5, 7, 100, 64), 5, groups=[group()])


def test_a_failing_tracker_is_dropped_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = Heard(fails=1), Heard()
    listeners = Listeners()
    for name, tracker in (("broken", broken), ("whole", whole)):
        listeners.add(name, TrackerListener(tracker, ReportingConfig()))
    for number in range(3):
        listeners.step(step_of(number))
    listeners.close()
    assert [event[0] for event in broken.events] == ["scalars"]
    assert [event[0] for event in whole.events] == ["scalars", "responses"] * 3 + ["close"]
    warnings = [message for message in caplog.messages if "broken" in message]
    assert warnings == ["broken failed and is closed; the run goes on without it: the disk is full"]


def test_a_tracker_that_does_not_open_costs_nothing(
    config: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*how: Any) -> Any:
        raise RuntimeError("no such server")

    row = registry.TRACKERS["tensorboard"]._replace(open=refuse)
    monkeypatch.setattr(registry, "TRACKERS", {"tensorboard": row})
    monkeypatch.setattr(registry, "find_spec", lambda package: package)
    assert run(with_trackers(config, "tensorboard"), tmp_path / "run") is not None
    assert "tensorboard could not be opened; the run goes on without it: no such server" in caplog.messages
    assert (tmp_path / "run" / "steps.jsonl").read_bytes() == (plain / "steps.jsonl").read_bytes()


@pytest.mark.parametrize(
    "reporting, here, away",
    [({}, [2], [0]), ({"send_images": True}, [2], [2]), ({"images": False, "send_images": True}, [0], [0])],
)
def test_images_are_not_sent_unless_asked(
    reporting: dict[str, Any], here: list[int], away: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    local, remote = Heard(), Heard(sends=True)
    with caplog.at_level(logging.INFO):
        listeners = [TrackerListener(tracker, ReportingConfig(**reporting)) for tracker in (local, remote)]
    for listener in listeners:
        listener.step(step_of(4))
    assert local.events[1:] == [("responses", here, 4)] and remote.events[1:] == [("responses", away, 4)]
    assert ("reporting.send_images=true" in caplog.text) == (reporting == {})


def test_only_finite_numbers_make_points() -> None:
    figures = {"a": 1, "b": {"c": 0.5, "d": None, "e": [1, 2]}, "f": True, "g": "x", "h": float("nan")}
    assert dict(flat(figures)) == {"a": 1, "b/c": 0.5}


def test_a_tracker_may_be_added_or_left_out_when_a_run_goes_on(config: Any, sealed: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    assert run(config, tmp_path / "run", listener=Stopping(1)) is None
    assert run(with_trackers(config, "tensorboard"), tmp_path / "run", resume=True) is not None
    assert set(scalars(tmp_path / "run")["steps/loss"]) == {1, 2}


def test_nothing_of_a_tracker_is_imported_unless_asked(plain: Path) -> None:
    code = "import mm_spine.runs.run, sys; print(sorted({'tensorboard', 'wandb', 'trackio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
