"""`mm-spine ask`: one image, one question, a vote; adapted or not, the weights are afterwards what they were."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command, runner
from rich.console import Console
from small import Silent

from mm_spine import cli
from mm_spine.benchmarks import BENCHMARKS
from mm_spine.benchmarks.digits import BENCHMARK as DIGITS
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.commands import ask_output, ask_session, printing
from mm_spine.commands.ask_session import (
    AskOptions,
    AskResult,
    AskSettings,
    ask,
    ask_settings,
    kind_for,
    outcome_of,
    question_of,
    tokens_of,
)
from mm_spine.policy.model import Policy
from mm_spine.reporting.entropy_colours import FULL, Token, choices, coloured, legend, shade
from mm_spine.types import Question, Rollout, StepReport
from mm_spine.voting import make_group

WORDS = "What is the sum of the digits?"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, policy: Policy) -> Command:
    """`mm-spine ask` with these arguments, in this process, with the model of the session."""
    monkeypatch.setattr(ask_session, "load", lambda settings: policy)
    return runner(capsys, monkeypatch, "ask")


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The embedded model."""
    return ask_session.load(ask_settings(AskOptions()))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two handwritten digits, 4 and 7, that the model was never trained on."""
    path = tmp_path_factory.mktemp("pictures") / "digits.png"
    DIGITS.load("held_out").questions[0].images[0].save(path)  # type: ignore[union-attr]
    return path


def asked(policy: Policy, picture: Path, settings: AskSettings, **more: Any) -> list[AskResult]:
    return list(ask(policy, question_of(WORDS, [picture], settings), settings, **more))


# What it prints


def test_the_answer_its_vote_and_the_winning_response_are_printed(command: Command, picture: Path) -> None:
    ended = command(picture, WORDS)
    assert ended.code == 0
    first, *rest = ended.out.splitlines()
    assert first.startswith("answer: 11 ") and first.endswith("% of 16 votes")
    assert any("boxed{11}" in line for line in rest)
    assert "«forking tokens»: " in ended.out and "16 responses" in ended.out


def test_before_and_after_stand_side_by_side(
    command: Command, picture: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "mm_spine")
    monkeypatch.setattr(printing, "console", Console(width=120))
    ended = command(picture, WORDS, "--adapt", 2, "--votes", 8)
    assert ended.code == 0
    first, second = ended.out.splitlines()[:2]
    assert first.split() == ["before", "after", "2", "steps", "on", "this", "question", "alone"]
    assert second.count("answer: 11") == 2
    assert "adapted in" in ended.out
    assert "step 2 of 2" in caplog.text and "step 2 of 2" not in ended.out


def test_json_is_one_object_and_nothing_else(command: Command, picture: Path) -> None:
    ended = command(picture, WORDS, "--json", "--votes", 6)
    found = json.loads(ended.out)
    assert ended.code == 0 and ended.out.count("\n") == 1
    assert (found["answer"], found["kind"], found["votes"], found["images"]) == ("11", "integer", 6, [str(picture)])
    assert found["after"] is None and found["adapted"] is None
    before = found["before"]
    assert sum(before["counts"].values()) + before["unparsed"] == len(before["responses"]) == 6
    assert found["share"] == before["share"] == max(before["counts"].values()) / 6
    assert "".join(token["text"] for token in before["winner"]["tokens"]) == before["winner"]["text"] + "<|im_end|>"
    assert all(token["entropy"] >= 0 for token in before["winner"]["tokens"])


def test_json_of_an_adapted_question_has_both_votes(command: Command, picture: Path) -> None:
    found = json.loads(command(picture, WORDS, "--json", "--votes", 4, "--adapt", 2).out)
    assert found["adapted"]["method"] == "spine" and found["adapted"]["steps"] == 2
    assert len(found["adapted"]["shares"]) == 2
    assert found["answer"] == found["after"]["answer"] and found["share"] == found["after"]["share"]
    assert len(found["before"]["responses"]) == len(found["after"]["responses"]) == 4


def test_the_same_seed_gives_the_same_answer_and_another_another_draw(command: Command, picture: Path) -> None:
    runs = [json.loads(command(picture, WORDS, "--json", "--seed", seed).out)["before"] for seed in (3, 3, 4)]
    for run in runs:
        del run["seconds"]
    assert runs[0] == runs[1] and runs[0]["responses"] != runs[2]["responses"]


def test_a_file_whose_name_is_no_text_is_asked_about_in_ascii(command: Command, picture: Path, tmp_path: Path) -> None:
    odd = tmp_path / "d\udcff \u6f22.png"
    odd.write_bytes(picture.read_bytes())
    ended = command(odd, WORDS, "--json", "--votes", 2)
    assert ended.out.isascii() and json.loads(ended.out)["images"] == [str(odd)]


def test_a_terminal_without_the_signs_gets_others(
    command: Command, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    assert command(picture, WORDS, "--votes", 2).code == 0
    sys.stdout.flush()
    assert b"answer: " in out.getvalue() and b"2 responses" in out.getvalue()


def test_the_script_without_its_environment_says_how_to_make_one(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(repository / "scripts" / "ask.py", tmp_path / "scripts")
    done = subprocess.run([sys.executable, "-I", "-S", script, "a.png", "b"], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert "run scripts/demo.sh" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_script_is_the_command_from_anywhere(repository: Path, picture: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(repository / "scripts" / "ask.py"), str(picture), WORDS]
    done = subprocess.run(
        [*script, "--json", "--votes", "4", "--adapt", "1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["after"]["answer"] is not None, "DeepSpeed and torch must not print there either"
    assert not list(tmp_path.iterdir()), "nothing is written"


# What cannot be asked


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.png", WORDS], "nowhere.png: there is no regular file of that name"),
        (["TEXT", WORDS], "it is none of PNG, JPEG"),
        (["PICTURE", " "], "the question is empty"),
        (["PICTURE", WORDS, "--kind", "integr"], "did you mean 'integer'"),
        (["PICTURE", WORDS, "--image", "nowhere.png"], "nowhere.png: there is no regular file"),
        (["PICTURE", WORDS, "--model", "./nowhere"], "neither a folder nor a hub id"),
        (["PICTURE", WORDS, "--benchmark", "slaek"], "'slake'"),
        (["PICTURE", WORDS, "--method", "spien"], "did you mean 'spine'"),
        (["PICTURE", WORDS, "--method", "none", "--adapt", "2"], "'none' does not train"),
        (["PICTURE", WORDS, "--method", "oracle", "--adapt", "2"], "--allow-labels"),
        (["PICTURE", WORDS, "sampling.temprature=1"], "did you mean 'temperature'"),
        (["PICTURE", WORDS, "--model", ""], "--model is empty"),
        (["PICTURE", WORDS, "--choice", "one"], "1 choice: give two or more"),
        (["PICTURE", WORDS, *(f"--choice={i}" for i in range(27))], "27 choices; at most 26"),
        (["PICTURE", WORDS, "--choice", "one", "--choice", " "], "choice 2 is empty"),
        (["PICTURE", WORDS, "--choice", "one", "--choice", "one"], "choice 'one' is there twice"),
        (["PICTURE", "what\udcff"], "is no text in UTF-8"),
        (["PICTURE", WORDS, "--choice", "a", "--choice", "\udcff"], "is no text in UTF-8"),
        (["PICTURE", WORDS, "--votes", "99999999999"], "less than or equal to 1024"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_asked_is_one_message_before_anything_loads(
    arguments: list[str],
    expected: str,
    picture: Path,
    tmp_path: Path,
    nothing_loads: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    places = {"PICTURE": str(picture), "TEXT": str(tmp_path / "notes.txt")}
    monkeypatch.setattr(sys, "argv", ["mm-spine", "ask", *(places.get(word, word) for word in arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out
    assert expected in " ".join(err.split()) and "Traceback" not in err


def test_no_parsable_answer_shows_the_responses_and_fails(command: Command, picture: Path) -> None:
    ended = command(picture, WORDS, "--kind", "choice", "--votes", 4)
    assert ended.code == 2 and not ended.out
    assert "none of 4 responses could be read as an answer" in ended.err
    assert ended.err.count("boxed{") == 4


def test_no_parsable_answer_as_json_is_a_null_and_fails(command: Command, picture: Path) -> None:
    ended = command(picture, WORDS, "--kind", "choice", "--votes", 4, "--json", "--adapt", 2)
    found = json.loads(ended.out)
    assert ended.code == 2
    assert found["answer"] is None and found["before"]["unparsed"] == 4
    assert found["after"] is None, "without a vote there is nothing to adapt to"


# How a question is put


@pytest.mark.parametrize(
    ("words", "options", "benchmark", "expected"),
    [
        ("Which organ is shown?", (), None, "text"),
        ("Is there a fracture?", (), None, "yes_no"),
        ("Is this a CT or an MRI?", (), None, "text"),
        ("Is there a fracture?", ("yes", "no", "unsure"), None, "choice"),
        (WORDS, (), "digits", "integer"),
        ("Is the sum greater than 10?", (), "digits", "yes_no"),
        ("Is there a fracture?", (), "slake", "medical"),
    ],
)
def test_the_kind_follows_choices_words_and_benchmark(
    words: str, options: tuple[str, ...], benchmark: str | None, expected: str
) -> None:
    assert kind_for(words, options, BENCHMARKS[benchmark] if benchmark else None) == expected


def test_the_embedded_model_is_asked_in_the_words_given(picture: Path) -> None:
    assert question_of(WORDS, [picture], ask_settings(AskOptions())).prompt == WORDS


def test_another_model_is_told_how_to_answer_unless_as_is(picture: Path) -> None:
    settings = replace(ask_settings(AskOptions()), benchmark=None)
    asked_of = question_of("Which organ?", [picture], settings, choices=("liver", "lung"))
    assert asked_of.prompt.startswith("Which organ?\n(A) liver\n(B) lung\nThink step by step")
    assert asked_of.spec.kind == "choice" and asked_of.spec.choices == ("liver", "lung")
    assert question_of("Which organ?", [picture], settings, as_is=True).prompt == "Which organ?"


def test_choices_are_shown_to_a_model_that_gets_no_instructions(picture: Path) -> None:
    prompt = question_of("Which?", [picture], ask_settings(AskOptions()), choices=("10", " 11 ")).prompt
    assert prompt == "Which?\n(A) 10\n(B) 11"


def test_overrides_go_before_everything(picture: Path) -> None:
    config = ask_settings(
        AskOptions(
            votes=8,
            steps=3,
            overrides=(
                "sampling.temperature=0.5",
                "optim.lr=0.1",
            ),
        )
    ).config
    assert (config.sampling.votes.max, config.sampling.train_rollouts) == (8, 8)
    assert (config.optim.steps, config.optim.lr, config.sampling.temperature) == (3, 0.1, 0.5)
    assert config.scope == "question" and config.method.kl == "none", "as configs/digits.yaml has it"


# The vote, and the weights afterwards


def test_rounds_change_neither_draws_nor_vote(policy: Policy, picture: Path) -> None:
    settings = ask_settings(AskOptions(votes=7))
    *early, in_rounds = asked(policy, picture, settings, each=3)
    (at_once,) = asked(policy, picture, settings)
    assert [len(found.outcome.responses) for found in early] == [3, 6]
    texts = [[r.text for r in found.outcome.responses] for found in (in_rounds, at_once)]
    assert texts[0] == texts[1] and in_rounds.outcome.vote == at_once.outcome.vote


def test_adaptation_moves_the_vote_and_leaves_the_weights_as_they_were(policy: Policy, picture: Path) -> None:
    start = policy.weights()
    *_, last = asked(policy, picture, ask_settings(AskOptions(steps=3)))
    assert last.after is not None and len(last.steps) == 3 and last.outcome is last.after
    assert last.after.vote.share > last.before.vote.share, "the same draws, from sharper weights"
    assert all(torch.equal(start[name], value) for name, value in policy.weights().items())


def test_an_error_while_adapting_leaves_the_weights_as_they_were(policy: Policy, picture: Path) -> None:
    start, seen = policy.weights(), []

    def fail(report: object) -> None:
        seen.append(not all(torch.equal(start[name], value) for name, value in policy.weights().items()))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        asked(policy, picture, ask_settings(AskOptions(steps=2, votes=4)), on_step=fail)
    assert seen == [True], "the step had moved them"
    assert all(torch.equal(start[name], value) for name, value in policy.weights().items())


def test_leaving_between_rounds_leaves_the_weights_as_they_were(policy: Policy, picture: Path) -> None:
    start, settings = policy.weights(), ask_settings(AskOptions(steps=1, votes=4))
    going = ask(policy, question_of(WORDS, [picture], settings), settings, each=2)
    after = next(found for found in going if found.after is not None)
    assert len(after.outcome.responses) == 2
    going.close()
    assert all(torch.equal(start[name], value) for name, value in policy.weights().items())


def rollout(text: str, index: int, logp: float, tokenizer: Any, entropy: list[float] | None = None) -> Rollout:
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    own = np.linspace(0, 1, len(ids), dtype=np.float32) if entropy is None else np.array(entropy, np.float32)
    return Rollout("question", index, ids, text, np.full(len(ids), logp, np.float32), own, "stop")


def test_the_winner_is_the_likeliest_per_token_of_the_winning_answer(policy: Policy) -> None:
    texts = [("So \\boxed{4}.", -0.1), ("So \\boxed{7}.", -0.5), ("I see. Thus \\boxed{7}.", -0.3)]
    rollouts = [rollout(text, i, logp, policy.tokenizer) for i, (text, logp) in enumerate(texts)]
    group = make_group(Question("question", (), WORDS, ask_session.AnswerSpec("integer")), rollouts)
    outcome = outcome_of(group, ask_settings(AskOptions()).config, policy.tokenizer)
    assert outcome.vote.answer == "7" and outcome.winner is outcome.responses[2]
    assert [response.answer for response in outcome.responses] == ["4", "7", "7"]


def test_forks_are_the_top_fifth_by_entropy(policy: Policy) -> None:
    text = "The answer is 1 2 3"
    n = len(rollout(text, 0, 0.0, policy.tokenizer).token_ids)
    entropy = [float(i == 1) for i in range(n)]
    drawn = rollout(text, 0, 0.0, policy.tokenizer, entropy)
    group = make_group(Question("question", (), WORDS, ask_session.AnswerSpec("text")), [drawn])
    config = ask_settings(
        AskOptions(
            overrides=(
                "method.mask_rule=top_k",
                "method.share=0.01",
            )
        )
    ).config
    tokens = outcome_of(group, config, policy.tokenizer).responses[0].tokens
    assert [token.fork for token in tokens] == [i == 1 for i in range(n)]


def test_bytes_of_one_character_are_one_piece_with_their_largest_entropy(policy: Policy) -> None:
    drawn = rollout("a€b", 0, 0.0, policy.tokenizer)
    assert len(drawn.token_ids) > 3, "the tokenizer must split the sign for this to say anything"
    entropy = np.array([0.1, *np.linspace(0.5, 0.9, len(drawn.token_ids) - 2), 0.2], np.float32)
    forks = np.array([False, True, *[False] * (len(drawn.token_ids) - 2)])
    tokens = tokens_of(replace(drawn, entropy=entropy), forks, policy.tokenizer)
    assert [(token.text, round(token.entropy, 3), token.fork) for token in tokens] == [
        ("a", 0.1, False),
        ("€", 0.9, True),
        ("b", 0.2, False),
    ]


def test_a_sampler_without_entropies_is_scored(policy: Policy, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ask_settings(AskOptions(votes=4))
    (plain,) = asked(policy, picture, settings)
    make = ask_session.make_sampler
    monkeypatch.setattr(ask_session, "make_sampler", lambda *given: Silent(make(*given)))
    (scored,) = asked(policy, picture, settings)
    assert plain.outcome.winner is not None and scored.outcome.winner is not None
    pairs = zip(plain.outcome.winner.tokens, scored.outcome.winner.tokens, strict=True)
    assert all(a.text == b.text and a.entropy == pytest.approx(b.entropy, abs=1e-4) for a, b in pairs)


def test_a_model_folder_is_asked_as_its_benchmark(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--model", str(MODEL_DIR), "--benchmark", "digits"]
    monkeypatch.setattr(sys, "argv", ["mm-spine", "ask", str(picture), WORDS, *named, "--votes", "4", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert not ended.value.code and found["model"] == str(MODEL_DIR) and found["question"] == WORDS


# In a terminal


def printed(found: AskResult, **how: Any) -> list[str]:
    console = Console(force_terminal=True, **how)
    with console.capture() as shown:
        console.print(*ask_output.report(found, console), sep="\n")
    return shown.get().splitlines()


@pytest.fixture(scope="module")
def split_vote(policy: Policy) -> AskResult:
    """Three of four for 7, one for 4, alike before and after a step."""
    texts = ["\\boxed{7}", "\\boxed{7}", "\\boxed{7}", "\\boxed{4}"]
    rollouts = [rollout(text, i, 0.0, policy.tokenizer) for i, text in enumerate(texts)]
    group = make_group(Question("question", (), WORDS, ask_session.AnswerSpec("integer")), rollouts)
    outcome = outcome_of(group, ask_settings(AskOptions()).config, policy.tokenizer)
    return AskResult(outcome, (StepReport(0),), 0.1, outcome)


@pytest.mark.parametrize("width", [36, 60, 120])
def test_bars_are_in_proportion_at_any_width(split_vote: AskResult, width: int) -> None:
    lines = printed(replace(split_vote, after=None), width=width, color_system=None)
    rows = [line for line in lines if line.split()[:2] in (["7", "3"], ["4", "1"])]
    three, one = (row.count("━") + row.count("╸") / 2 for row in rows)
    assert three == pytest.approx(3 * one, abs=1.5) and one >= 1


def test_before_and_after_stand_below_each_other_where_there_is_no_room(split_vote: AskResult) -> None:
    narrow, wide = (printed(split_vote, width=width, color_system=None) for width in (60, 120))
    assert [line.strip() for line in narrow if "after" in line] == ["after 1 step on this question alone"]
    assert wide[0].split("  ")[0] == "before" and wide[0].rstrip().endswith("alone")


def test_without_colours_forks_are_marked_by_signs(split_vote: AskResult) -> None:
    shown = "\n".join(printed(split_vote, width=80, no_color=True, color_system="truecolor"))
    assert "«" in shown and "0.69" not in shown


# Colours


def test_shade_grows_with_entropy_up_to_full() -> None:
    assert [shade(x) for x in (-1.0, 0.0, FULL / 2, FULL, 9.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert shade(float("nan")) == 0.0
    assert choices(np.log(3)) == pytest.approx(3)


def test_forks_are_marked_without_colours_too() -> None:
    tokens = [Token("So", 0.0), Token(" 4", 1.5, True)]
    assert coloured(tokens, plain=True).plain == "So« 4»"
    styled = coloured(tokens)
    assert styled.plain == "So 4"
    (span,) = styled.spans  # a certain token stays as it is
    assert (span.start, span.end) == (2, 4) and {"bold", "underline"} <= set(str(span.style).split())
    assert "«" in legend(plain=True).plain and "0.69" in legend().plain


def test_backgrounds_are_of_one_hue_and_grow_with_entropy() -> None:
    spans = coloured([Token("x", FULL * k / 4) for k in range(1, 5)]).spans
    colours = [span.style.bgcolor.triplet for span in spans]  # type: ignore[union-attr]
    assert colours == sorted(colours) and len(set(colours)) == 4
    assert all(red < green < blue for red, green, blue in colours)


def test_a_response_cannot_act_on_the_terminal(policy: Policy) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07[bold]7[/bold]"
    group = make_group(
        Question("question", (), WORDS, ask_session.AnswerSpec("text")), [rollout(hostile, 0, 0.0, policy.tokenizer)]
    )
    found = AskResult(outcome_of(group, ask_settings(AskOptions()).config, policy.tokenizer))
    console = Console(width=100, record=True, force_terminal=False, color_system=None)
    with console.capture() as shown:
        console.print(*ask_output.report(found, console), sep="\n")
    assert "\x1b" not in shown.get() and "\x07" not in shown.get()
    assert "[bold]7" in shown.get().replace("«", "").replace("»", "")
    assert "\x1b" not in str(ask_output.no_answer(found.outcome))


def test_the_id_of_a_question_depends_on_its_words_and_the_content_of_its_images(picture: Path, tmp_path: Path) -> None:
    settings = ask_settings(AskOptions())
    copy = tmp_path / "copy.png"
    shutil.copy(picture, copy)
    asked = question_of(WORDS, [picture], settings).id
    for same in ([copy], [str(picture)], [picture.read_bytes()]):
        assert question_of(WORDS, same, settings).id == asked
    copy.write_bytes(b"another")
    others = {question_of(words, images, settings).id for words, images in (
        (WORDS + "?", [picture]), (WORDS, []), (WORDS, [copy]), (WORDS, [picture, picture]),
    )}  # fmt: skip
    assert len({*others, asked}) == 5


def test_ties_of_different_questions_fall_both_ways() -> None:
    settings = ask_settings(AskOptions(kind="yes_no"))
    winners = []
    for number in range(64):
        question = question_of(f"Is it {number}?", [], settings)
        rollouts = [
            Rollout(question.id, i, (1,), text, np.zeros(1, np.float32), np.zeros(1, np.float16), "stop")
            for i, text in enumerate(("yes", "no"))
        ]
        winners.append(make_group(question, rollouts).vote.answer)
    # By chance, 64 fair ties give fewer than 16 of a kind once in 30,000 times.
    assert 16 <= winners.count("yes") <= 48 and {*winners} == {"yes", "no"}
