"""The checker of formulas: what it finds equal, and that a hang, a crash or a blow-up costs its pair alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mm_spine.processors.answers import checker, grade, parse, same
from mm_spine.types import Answer, AnswerSpec

MATH = AnswerSpec("math")

# Speaks the worker's protocol; some strings make it fail. Forks like the real one, so that a kill costs no start.
FAKE = """
import json, os, resource, signal, sys, time
late = False
while True:
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        print(json.dumps({"pid": os.getpid(), "timed_out": late}), flush=True)
        while line := sys.stdin.buffer.raw.readline():
            request = json.loads(line)
            text = request["gold"] + request["answer"]
            signal.setitimer(signal.ITIMER_PROF, request["limit"])
            if "sleep" in text:
                time.sleep(60)
            if "hang" in text:
                print(json.dumps({"reading": "hang"}), flush=True)
                while True:
                    pass
            if "crash" in text:
                os.abort()
            if "memory" in text:
                print(json.dumps({"error": "it ran out of memory"}), flush=True)
                os._exit(1)
            print(json.dumps({"equal": request["gold"].lower() == request["answer"].lower()}), flush=True)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        break
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
"""


def forget() -> None:
    checker.close()
    checker._outcome.cache_clear()
    checker._failures.clear()
    checker._unreadable.clear()


@pytest.fixture
def fresh() -> Iterator[None]:
    """No process and nothing remembered, before and after."""
    forget()
    yield
    forget()


@pytest.fixture
def fake(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(checker, "_COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(checker, "LIMIT_S", 0.5)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2", True),
        ("x^2+1", "1+x^2", True),
        ("(x+1)^2", "x^2+2x+1", True),
        (r"\sin^2 x+\cos^2 x", "1", True),
        ("0.333333", r"\frac{1}{3}", True),  # math-verify rounds floats to six decimals
        ("3.14", r"\pi", False),
        ("x^2+1", "x^2-1", False),
        ("2ab", "2", False),  # math-verify's own units would take "ab" off
        (r"x\le 5", r"5\ge x", True),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{bmatrix}1&2\end{bmatrix}", True),
        (r"\frac{", "1", False),
        # Products, which latex2sympy takes for mixed numbers.
        ("2(3)", "6", True),
        ("(2)(3)", "6", True),
        ("(2)(3)", "5", False),
        ("(2)(3)(4)", "24", True),
        (r"2(\frac{1}{2})", "1", True),
        (r"2(\frac{1}{2})", "2.5", False),
        (r"2\left(3\right)", "6", True),
        (r"\sin^2(x)+\cos^2(x)", "1", True),
        ("f(2)(3)", "5", False),
        # Tiny and huge values compare by their ratio.
        (r"\frac{1}{19!}", r"\frac{1}{20!}", False),
        (r"\frac{1}{19!}", r"\frac{20}{20!}", True),
        ("2^{-99}", "2^{-98}", False),
        ("2^{-99}", r"\frac{2^{-98}}{2}", True),
        (r"\sqrt{10^{-20}}", "0", False),
        (r"\begin{pmatrix}2^{-99}\\1\end{pmatrix}", r"\begin{pmatrix}2^{-98}\\1\end{pmatrix}", False),
        ("y=2^{-99}x", "y=2^{-98}x", False),
        ("10^{30}+1", "10^{30}", False),
    ],
)
def test_equality_by_algebra_in_both_directions(a: str, b: str, equal: bool) -> None:
    assert checker.equal(a, b) is equal
    assert checker.equal(b, a) is equal


def test_one_direction_is_enough_for_equal_but_a_grade_asks_the_gold_first() -> None:
    # math-verify 0.9, verify: "Function is not symmetric": an inequality as gold accepts the interval, not the reverse.
    inequality, interval = r"-\sqrt{3}<x<\sqrt{3}", r"(-\sqrt{3},\sqrt{3})"
    assert checker.accepts(inequality, interval) and not checker.accepts(interval, inequality)
    assert checker.equal(inequality, interval) and checker.equal(interval, inequality)


def test_it_answers_in_threads() -> None:
    # math-verify's own limit is signal.alarm, a ValueError outside the main thread (its README, "Timeouts").
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(checker.equal(f"x+{i}", f"{i}+x"))) for i in range(1, 6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 5


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["9^9^9^9", "9^{9^{9^9}}", "10000!", "5!!!!", "2^{100000}", "10^9^9!"])
def test_a_number_that_fills_pages_is_refused_before_it_is_computed(fresh: None, tower: str) -> None:
    assert not checker.equal(tower, "3")
    # A number that was computed would fail on the limit of time or memory instead.
    (failure,) = checker.failures()
    assert "too large" in failure.reason and tower in failure


@pytest.mark.parametrize("text", ["2^{2^3}", "x^{2024}", "100!", "10^{12}", "x^y^z"])
def test_an_ordinary_power_is_not_refused(text: str) -> None:
    assert not checker.huge(text)


@pytest.mark.slow
def test_a_computation_that_never_ends_costs_its_pair_and_is_reported(
    fresh: None, caplog: pytest.LogCaptureFixture
) -> None:
    checker.equal("x", "y+1")  # the import is not the item's
    tower = "(9)^{(9)^{(9)^{9}}}"  # as 9^9^9^9, in a form that the cheap test does not see
    assert not checker.equal(tower, "3")
    assert checker.equal("1+x", "x+1")
    (failure,) = checker.failures()
    assert failure.reason == "no verdict after 1.5 s of processor time"
    assert sum("no verdict after 1.5 s of processor time" in record.message for record in caplog.records) == 1


# The real worker, but for a comparison of "blow" that asks for 4 GiB.
GREEDY = """
import sys
sys.path.append({folder!r})
import checker_worker as worker
equal = worker.equal
worker.equal = lambda gold, answer, both: bool(bytearray(4 << 30)) if "blow" in gold else equal(gold, answer, both)
sys.exit(worker.main())
"""


def test_memory_is_bounded(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "greedy.py"
    script.write_text(GREEDY.format(folder=str(Path(checker.__file__).parent)))
    monkeypatch.setattr(checker, "_COMMAND", (sys.executable, "-P", str(script)))
    assert not checker.accepts(r"\blow", "3")
    assert checker.equal("1+x", "x+1")
    (failure,) = checker.failures()
    assert failure.reason == "it ran out of memory"


def test_the_limit_of_memory_is_the_imports_and_what_is_allowed_beyond(fresh: None) -> None:
    checker.equal("1+x", "x+1")
    assert checker._worker is not None
    limits = Path(f"/proc/{checker._worker.fork}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max address space"))
    assert checker.MEMORY_BYTES < int(line.split()[3]) < checker.MEMORY_BYTES + (512 << 20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("hang", "no verdict after 0.5 s of processor time"), ("crash", "it crashed"), ("memory", "ran out of memory")],
)
def test_a_failing_pair_fails_alone(fake: None, text: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    assert checker.equal("a", "A")
    assert not checker.equal(text, "b")
    assert not checker.equal("b", text)  # remembered, in either order
    assert checker.equal("c", "C") and not checker.equal("c", "d")
    (failure,) = checker.failures()
    assert failure[:2] == ("b", text) and reason in failure.reason
    assert len(caplog.records) == 1


def test_what_cannot_be_read_is_not_tried_again_with_another(fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not checker.equal("hang", "a")
    monkeypatch.setattr(checker._worker, "ask", lambda *_: pytest.fail("the checker was asked again"))
    assert not any(checker.equal("hang", other) for other in "bcdef")


def test_one_item_takes_one_limit_however_much_it_compares(fake: None) -> None:
    checker.equal("a", "b")

    def three() -> None:
        with checker.one_item() as reasons:
            assert not any(checker.equal(text, "b") for text in ("hang1", "hang2", "hang3"))
        assert len(reasons) == 1

    three()


def test_a_verdict_does_not_depend_on_what_else_the_machine_does(fresh: None) -> None:
    """Stopped for twice its limit, as on a busy machine, the worker still gives its verdict."""
    assert checker.equal("1+x", "x+1")
    assert checker._worker is not None
    fork = checker._worker.fork
    os.kill(fork, signal.SIGSTOP)
    threading.Timer(2 * checker.LIMIT_S, os.kill, (fork, signal.SIGCONT)).start()
    assert checker.equal("(x+1)^3", "x^3+3x^2+3x+1")
    assert checker.failures() == ()


def test_a_worker_that_neither_computes_nor_answers_is_replaced(fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "WALL_S", 0.5)
    assert not checker.equal("sleep", "b")
    (failure,) = checker.failures()
    assert failure.reason == "no verdict after 0.5 s of waiting"
    monkeypatch.setattr(checker, "WALL_S", 60.0)
    assert checker.equal("a", "A")


def test_a_hang_is_named_in_the_verdict_and_does_not_score_the_rest_zero(fake: None) -> None:
    hung, right = (parse(rf"\boxed{{{text}}}", MATH) for text in (r"\hang+x", r"\PI+x"))
    assert grade(hung, r"\pi", MATH).why.endswith("The checker stopped: no verdict after 0.5 s of processor time.")
    assert grade(right, r"\pi+x", MATH).correct
    assert "checker" not in grade(right, r"\pi+y", MATH).why


def test_a_worker_that_is_killed_is_replaced(fresh: None) -> None:
    assert checker.equal("1+x", "x+1")
    assert checker._worker is not None
    checker._worker.process.kill()
    checker._worker.process.wait()
    assert checker.equal("2+x", "x+2")
    assert checker.failures() == ()


def test_a_worker_that_does_not_start_is_an_error(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "_COMMAND", (sys.executable, "-c", "raise ImportError"))
    with pytest.raises(RuntimeError, match="does not start.*math-verify"):
        checker.equal("1+x", "x+1")


def _in_fork() -> None:
    mine = checker._worker is None and checker.equal("3+x", "x+3")
    assert mine and checker._worker is not None and checker._worker.owner == os.getpid()
    checker.close()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_fork_starts_its_own_worker_and_leaves_the_parents_alone() -> None:
    assert checker.equal("1+x", "x+1")
    child = multiprocessing.get_context("fork").Process(target=_in_fork)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert checker.equal("4+x", "x+4")


def test_nothing_is_left_running_at_exit() -> None:
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('checker', sys.argv[1]);"
        "c = u.module_from_spec(s); sys.modules['checker'] = c; s.loader.exec_module(c);"
        "assert c.equal('1+x', 'x+1'); print(c._worker.process.pid, c._worker.fork)"
    )
    done = subprocess.run([sys.executable, "-c", code, checker.__file__], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 2
    for pid in done.stdout.split():
        assert not Path(f"/proc/{pid}").exists()


def test_long_texts_are_compared_as_text_alone(fresh: None) -> None:
    long = "x+" * 1500 + "1"
    assert checker.equal(long, long) and not checker.equal(long, "1+" + "x+" * 1499 + "x")
    assert checker._worker is None


def test_the_verdict_on_a_pair_without_keys_is_symmetric() -> None:
    pairs = [
        ("(1,2)", r"\{2,1\}"),
        ("1,2", "(2,1)"),
        (r"-\sqrt{3}<x<\sqrt{3}", r"(-\sqrt{3},\sqrt{3})"),
        ("x=5", "x+y"),
    ]
    for a, b in pairs:
        one, other = Answer(a, None), Answer(b, None)
        assert same(one, other, MATH) == same(other, one, MATH)
