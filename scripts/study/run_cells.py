"""Run the study of `digits`: methods and controls over seeds, a long run, a high learning rate, another start.

    python scripts/study/run_cells.py [--study STUDY] [--rows NAME,NAME] [--jobs 2] [--only GLOB] [--report-only]

`--study catalogue` runs every row of the table of methods, at the default and at a common learning rate; `--study
frontier` runs them at growing learning rates without the guard. Both write a page of their own.

One folder per cell, `<output>/<group>/<method>/seed_<k>`. A cell is finished when its summary.json exists; finished
cells are skipped, half-written ones are removed and redone. The report is computed from finished cells alone. The exit
code is 1 where a cell failed, or came out differently when it was run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from cells import RECIPES, AnyCell, Cell, catalogue, cells, frontier, rows

from mm_spine.files import read_json, write_json

log = logging.getLogger("study")

SCRIPTS = Path(__file__).resolve().parent


# --- Running them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A cell, or a model to build, waiting for those of `needs` that are themselves still to be done."""

    name: str
    needs: tuple[str, ...]
    cell: AnyCell | None = None


def tasks(chosen: Iterable[AnyCell], output: Path) -> list[Task]:
    """List what is to be done for `chosen`, in order, with the models to build. Cells with a summary are left out."""
    todo = [cell for cell in chosen if not (output / cell.name / "summary.json").is_file()]
    listed: dict[str, Task] = {}
    for cell in todo:
        if cell.model is not None and not (output / cell.model).is_dir():
            listed.setdefault(cell.model, Task(cell.model, ()))
        listed[cell.name] = Task(cell.name, cell.needs, cell)
    return list(listed.values())


class Schedule:
    """Hands out the first task whose needs are neither waiting nor running. A need that failed holds nothing up."""

    def __init__(self, todo: Sequence[Task]) -> None:
        self.waiting = {task.name: task for task in todo}
        self.running: set[str] = set()

    def next(self) -> Task | None:
        for task in self.waiting.values():
            if not any(need in self.waiting or need in self.running for need in task.needs):
                del self.waiting[task.name]
                self.running.add(task.name)
                return task
        return None

    def ended(self, name: str) -> None:
        self.running.remove(name)


Runner = Callable[..., Mapping[str, Any] | None]
"""Runs a configuration in a folder; returns its summary, None when a signal stopped it."""


def run_quietly(*arguments: Any, **named: Any) -> Mapping[str, Any] | None:
    """Call `mm_spine.runs.run.run` without the progress bars of transformers."""
    # Imported here: a worker that is only asked for its exit, or a report, does not load torch.
    from transformers.utils.logging import disable_progress_bar

    from mm_spine.runs.run import run

    disable_progress_bar()
    return run(*arguments, **named)


def perform(task: Task, output: Path, runner: Runner = run_quietly) -> str | None:
    """Do one task in its folder, from the start. Return why it failed, which failed.txt keeps too, or None."""
    folder = output / task.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        if task.cell is None:
            _build_model(folder)
        elif runner(task.cell.config(output), folder, allow_labels=task.cell.label == "oracle") is None:
            return "stopped by a signal"
        elif task.cell.lean:
            _drop(folder)
    except Exception as error:
        log.exception("%s failed", task.name)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if task.cell is not None:
            folder.mkdir(exist_ok=True)
            (folder / "failed.txt").write_text(reason[:500] + "\n")
        return reason
    return None


def _drop(folder: Path) -> None:
    """Remove what no table of a lean cell needs."""
    for name in ("adapted", "checkpoints", "rollouts", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "report.html").unlink(missing_ok=True)


def _build_model(folder: Path) -> None:
    """Build the checkpoint of that name in a folder beside `folder`, then rename it."""
    aside = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    script = SCRIPTS / "train_source_checkpoint.py"
    subprocess.run([sys.executable, str(script), "--recipe", RECIPES[folder.name], "--output", str(aside)], check=True)
    aside.rename(folder)


REPEATED = ("steps.jsonl", "evaluation/after.jsonl")


def repeat(cell: Cell, output: Path, runner: Runner = run_quietly) -> bool:
    """Run a finished cell once more, aside. Whether `REPEATED` came out the same to the byte; kept in repeated.json."""
    folder, aside = output / cell.name, output / "repeated" / cell.name
    shutil.rmtree(aside, ignore_errors=True)
    runner(cell.config(output), aside, allow_labels=cell.label == "oracle")
    files = [(folder / name, aside / name) for name in REPEATED if (folder / name).is_file()]
    same = all(there.is_file() and here.read_bytes() == there.read_bytes() for here, there in files)
    commit = read_json(aside / "environment.json")["commit"]
    write_json(folder / "repeated.json", {"commit": commit, "identical": same})
    return same


Work = Callable[[Task, Path], str | None]


def serve(pipe: Connection, output: Path, work: Work) -> None:
    """Do the tasks that arrive through `pipe`, one after another, so that a process imports its packages once."""
    # The driver decides when to stop, and sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        while True:
            pipe.send(work(pipe.recv(), output))
    except (EOFError, BrokenPipeError):
        return


class Worker:
    """A process, the pipe to it, and the task it works on."""

    def __init__(self, output: Path, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, output, work), daemon=False)
        self.process.start()
        other.close()
        self.task: Task | None = None
        self.started = 0.0

    def give(self, task: Task) -> None:
        self.task, self.started = task, time.monotonic()
        self.pipe.send(task)

    def result(self) -> str | None:
        """What the task came to; a process that died under it has failed it."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return f"its process ended with code {self.process.exitcode}"

    def stop(self, patience: float = 60.0) -> None:
        """End the process: at once between cells and while it evaluates, else after the step it is at (seconds)."""
        self.pipe.close()
        if self.task is not None:
            self.process.terminate()
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Stopped(BaseException):
    """SIGINT or SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


def drive(todo: Sequence[Task], output: Path, jobs: int, work: Work = perform) -> dict[str, str | None]:
    """Do the tasks on `jobs` processes. Returns what each came to; raises Stopped when told to stop."""
    schedule, ended = Schedule(todo), dict[str, str | None]()
    workers: list[Worker] = []
    usual = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        workers += [Worker(output, work) for _ in range(min(jobs, len(todo)))]
        while schedule.waiting or schedule.running:
            for worker in workers:
                if worker.task is None and (task := schedule.next()) is not None:
                    worker.give(task)
            ready = wait([worker.pipe for worker in workers if worker.task is not None])
            for place, worker in enumerate(workers):
                if worker.pipe in ready and worker.task is not None:
                    ended[worker.task.name] = reason = worker.result()
                    schedule.ended(worker.task.name)
                    _say(worker, reason, len(ended), len(todo))
                    worker.task = None
                    if not worker.process.is_alive():
                        workers[place] = Worker(output, work)
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for worker in workers:
            worker.stop()
    return ended


def _say(worker: Worker, reason: str | None, done: int, total: int) -> None:
    name = worker.task.name if worker.task else ""
    seconds = time.monotonic() - worker.started
    log.info("[%d/%d] %s: %s, %.0f s", done, total, name, reason or "done", seconds)


# --- The command --------------------------------------------------------------------------------------------------

OUTPUT, RESULTS = Path("runs/study"), Path("docs/results")
STUDIES = ("digits", "catalogue", "frontier")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Exits when a trial would overwrite the study."""
    parser = argparse.ArgumentParser(prog="scripts/study_digits.sh", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="worker processes, one thread each (default: %(default)s)")
    parser.add_argument("--study", choices=STUDIES, default="digits", help="which cells (default: %(default)s)")
    parser.add_argument("--rows", help="methods of the catalogue and the frontier, by name and comma (default: all)")
    parser.add_argument("--only", action="append", metavar="GLOB", help="cells by name, e.g. 'main/spine/*'")
    parser.add_argument("--repeat", metavar="GLOB", help="run finished cells again, aside, and compare to the byte")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the report")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the cells (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration of every cell, for a trial")
    options = parser.parse_intermixed_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1")
    options.rows = None if options.rows is None else tuple(filter(None, options.rows.split(",")))
    if options.rows is not None:
        if options.study == "digits":
            parser.error("--rows: the study digits has its own; give --study catalogue or frontier, or use --only")
        known = rows(readers=options.study == "catalogue")
        if unknown := [name for name in options.rows if name not in known]:
            parser.error(f"--rows {unknown[0]}: no such row; they are {', '.join(known)}")
    if options.overrides and (options.output == OUTPUT or options.results == RESULTS):
        parser.error("KEY=VALUE is for a trial: give it an --output and a --results of its own")
    return options


AnyOfThem = TypeVar("AnyOfThem", bound=AnyCell)


def choose(table: Sequence[AnyOfThem], patterns: Sequence[str] | None) -> list[AnyOfThem]:
    """Return the cells that match one of the patterns, or all without a pattern. Exits when none matches."""
    chosen = [c for c in table if not patterns or any(fnmatch.fnmatch(c.name, pattern) for pattern in patterns)]
    if not chosen:
        raise SystemExit(f"--only {' '.join(patterns or ())}: no such cell; names are like {table[0].name}")
    return chosen


def cells_of(study: str, overrides: Sequence[str], chosen: Sequence[str] | None) -> list[Cell]:
    """Return the cells of a study, of the `chosen` rows only."""
    if study == "digits":
        return cells(overrides)
    return {"catalogue": catalogue, "frontier": frontier}[study](overrides, chosen)


def write_page(options: argparse.Namespace) -> Path:
    """Write the page of the study from its finished cells, also those that this call did not choose."""
    # Imported here: pages load matplotlib and SciPy, which a worker does not need.
    if options.study == "digits":
        from report import write_report

        return write_report(options.output, options.results, options.overrides)
    if options.study == "catalogue":
        import catalogue_page as page
    else:
        import frontier_page as page
    whole = cells_of(options.study, options.overrides, None)
    return page.write_page(options.output, options.results, whole, options.overrides)


def main() -> int:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # The workers inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    table = cells_of(options.study, options.overrides, options.rows)
    failed = False
    if options.repeat is not None:
        for cell in choose(table, [options.repeat]):
            same = repeat(cell, options.output)
            log.info("%s again: %s", cell.name, "the same" if same else "NOT the same")
            failed |= not same
    elif not options.report_only:
        todo = tasks(choose(table, options.only), options.output)
        log.info("%d tasks to do", len(todo))
        try:
            ended = drive(todo, options.output, options.jobs)
        except Stopped as stopped:
            log.warning("stopped: run this again to go on, with --report-only for the report of what is finished")
            return 128 + stopped.number
        failed = any(reason is not None for reason in ended.values())
    log.info("report: %s", write_page(options))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
