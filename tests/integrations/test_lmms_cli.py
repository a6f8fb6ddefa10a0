"""scripts/eval_lmms.sh: its options, its errors, and lmms-eval's own results."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lmms import DIGITS, LAUNCHERS_OWN, needed

from mm_spine import evaluation, files
from mm_spine.benchmarks import resolve
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.integrations import lmms_cli, lmms_tasks
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.sampling.registry import make_sampler


def test_the_command_passes_on_what_follows_two_dashes(folder: Path, tmp_path: Path) -> None:
    given = ["m", "pope", str(folder), "mm_spine:digits", "--args", "votes=8", "--output", str(tmp_path)]
    command = lmms_cli.command_line(lmms_cli.parser().parse_args(given), ["--limit", "8"])
    assert command[:4] == ["--model", "mm_spine", "--model_args", "pretrained=m,votes=8"]
    assert command[5] == f"pope,mm_spine_scans_adapt,{DIGITS},mm_spine_digits_held_out"
    assert command[6:] == [
        *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path)),
        *("--log_samples", "--limit", "8"),
    ]
    assert (tmp_path / "tasks" / "mm_spine_scans_adapt.yaml").is_file()


def test_the_script_helps_without_installing_anything(repository: Path) -> None:
    script = repository / "scripts" / "eval_lmms.sh"
    said = subprocess.run(["bash", str(script), "--help"], capture_output=True, text=True, check=True).stdout
    assert "usage: scripts/eval_lmms.sh MODEL TASK..." in said


@needed
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([str(MODEL_DIR), DIGITS, "--args", "vote=8"], "model_args vote: no such argument; did you mean 'votes'?"),
        ([str(MODEL_DIR), DIGITS, "--args", "votes"], "--args 'votes': write it as votes=8,temperature=0.7"),
        ([str(MODEL_DIR.parent), DIGITS], "no config.json there"),
        (["a,b", DIGITS], "no comma in it"),
        ([str(MODEL_DIR), "mm_spine:digitz"], "did you mean 'digits'"),
        ([str(MODEL_DIR), DIGITS, "--args", "adapter=absent"], "adapter=absent: no adapter_config.json there"),
        (["./absent", DIGITS], "neither a folder nor a hub id"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_sentence(
    given: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        lmms_cli.main([*given, "--output", str(tmp_path)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("mm-spine: ") and said.count("\n") == 1 and why in said


def test_the_script_hands_each_word_on_as_it_is(repository: Path, tmp_path: Path) -> None:
    root, here = tmp_path / "a check out", tmp_path / "the user's folder"
    shutil.copytree(repository / "scripts", root / "scripts")
    (root / ".venv" / "bin").mkdir(parents=True)
    here.mkdir()
    python = root / ".venv" / "bin" / "python"
    python.write_text(f"""#!/bin/sh
case "$1" in -c) exit 0 ;; esac
exec {shlex.quote(sys.executable)} -c 'import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))' "$@"
""")
    python.chmod(0o755)
    setup = root / "scripts" / "_setup.sh"
    setup.write_text(setup.read_text() + "\nis_current() { true; }\n")
    words = ["my model", "own scans", "--args", "votes=8,temperature=0.7", "--", "--gen_kwargs", "until=$HOME *;\"'"]
    script = ["bash", str(root / "scripts" / "eval_lmms.sh"), *words]
    done = subprocess.run(script, cwd=here, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [str(here), "-m", "mm_spine.integrations.lmms_cli", *words]


@needed
@pytest.mark.slow
def test_lmms_evals_own_command_gives_the_responses_and_scores_of_our_evaluation(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mm_spine.integrations.lmms_cli", str(MODEL_DIR), DIGITS, "--output", "out"]
    more = ["--", "--limit", "4", "--include_path", str(lmms_tasks.SHIPPED)]
    # DeepSpeed has left its variables in this process, where a run was tested before.
    environment = {name: x for name, x in os.environ.items() if name not in LAUNCHERS_OWN}
    done = subprocess.run([*line, *more], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    (results,), (samples,) = ((tmp_path / "out").glob(f"*/*_{name}*") for name in ("results.json", "samples"))
    policy, digits = Policy.load(MODEL_DIR), resolve("digits").load("adapt")
    sampler = make_sampler(policy, configure({}), lmms_tasks.config_of("digits").evaluation)
    items = evaluation.evaluate(digits.questions[:4], digits.key, sampler, samples=1, split="adapt")
    rows = files.read_json_lines(samples)
    assert [row["filtered_resps"] for row in rows] == [item.greedy_text for item in items]
    assert [row["score"] for row in rows] == [item.greedy.score for item in items if item.greedy]
    assert files.read_json(results)["results"][DIGITS]["score,none"] == evaluation.metrics(items)["greedy"]
