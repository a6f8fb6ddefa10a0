"""Responses from training, as the page shows them."""

from __future__ import annotations

from pathlib import Path

from saved_runs import group, rollout, write_step
from tokenizers import Tokenizer

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.reporting import training_responses
from mm_spine.reporting.training_responses import HEAD, TAIL


def test_responses_are_from_the_first_and_the_last_step(tmp_path: Path) -> None:
    for step, asked in enumerate(("a", "b", "a", "a", "c")):
        rows = [rollout(asked, i) for i in range(4)]
        write_step(tmp_path, step, [group(asked, rows, ["1", "1", "2", None])])
    paths = sorted((tmp_path / "rollouts").iterdir())
    found = training_responses.read_responses(paths, ["a", "b"], 4)
    places = {name: [(row["step"], row["index"]) for row in rows] for name, rows in found.items()}
    assert places == {"a": [(0, 0), (0, 2), (3, 0), (3, 2)], "b": [(1, 0), (1, 2), (1, 1), (1, 3)]}


def test_the_middle_of_a_long_response_is_left_out() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    n = 1000
    row = {
        "step": 0, "index": 0, "answer": "1", "vote": "1", "reward": 1.0, "finish_reason": "length", "text": "",
        "token_ids": [20] * n, "logp": [-0.5] * n, "entropy": [float("nan")] + [0.12345] * (n - 1),
        "selected": [True] * n, "parent": None, "fork_at": None,
    }  # fmt: skip
    shown = training_responses.response_for_page(row, tokenizer)
    assert (shown["length"], shown["cut"], len(shown["tokens"])) == (
        n,
        HEAD,
        HEAD + TAIL,
    )
    assert shown["entropy"][:2] == [None, 0.123] and shown["won"] is True
    assert "tokens" not in training_responses.response_for_page({**row, "token_ids": [-1]}, tokenizer)
