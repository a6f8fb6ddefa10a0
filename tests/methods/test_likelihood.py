"""The likelihood of the voted answer: what is asked of each rollout, and the reward that follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import END, tiny_processor, tiny_questions

from mm_spine.methods.likelihood import likelihood_reward, voted_asks, voted_text
from mm_spine.methods.sections import LikelihoodConfig
from mm_spine.types import Ask, Group, Rollout
from mm_spine.voting import make_group

TOKENIZER = tiny_processor().tokenizer
OPTIONS = LikelihoodConfig(name="likelihood")


def rollout(index: int, text: str, finish: str = "stop") -> Rollout:
    ids = (*TOKENIZER(text, add_special_tokens=False)["input_ids"], *([END] if finish == "stop" else []))
    return Rollout("q0", index, ids, text, np.zeros(len(ids), np.float32), None, finish)


def group(*texts: str) -> Group:
    """A group whose answers are whole numbers; the first text wins by majority or is the only one."""
    (question,) = tiny_questions(1)
    return make_group(question, [rollout(i, text) for i, text in enumerate(texts)])


def said(ask: Ask | None) -> tuple[str, str]:
    """What comes before the counted tokens, and these."""
    assert ask is not None
    cut = len(ask.token_ids) - ask.counted
    return TOKENIZER.decode(ask.token_ids[:cut]), TOKENIZER.decode(ask.token_ids[cut:])


def test_the_voted_answer_stands_where_the_response_had_its_own_and_its_end_counts() -> None:
    asks = voted_asks(OPTIONS, group(r"1 and 2. \boxed{3}", r"4 \boxed{3} or so", r"1 and 4. \boxed{15}"), TOKENIZER)
    assert [said(ask) for ask in asks] == [
        (r"1 and 2. \boxed{", "3}"), (r"4 \boxed{", "3}"), (r"1 and 4. \boxed{", "3}"),
    ]  # fmt: skip


def test_an_answer_at_the_very_end_is_ended_by_the_end_token() -> None:
    given = group("The answer is 12", "The answer is 12")
    for ask in voted_asks(OPTIONS, given, TOKENIZER):
        assert ask is not None and ask.token_ids == given.rollouts[0].token_ids and ask.token_ids[-1] == END
        assert said(ask)[0] == "The answer is" or said(ask)[0] == "The answer is "


def test_a_mention_inside_a_longer_number_is_no_mention() -> None:
    asks = voted_asks(OPTIONS, group(r"\boxed{5}", r"\boxed{5}", r"So \boxed{2}, not 12"), TOKENIZER)
    assert said(asks[2]) == (r"So \boxed{", "5}")


def test_nothing_is_asked_of_a_response_without_an_answer_or_where_nothing_won() -> None:
    asks = voted_asks(OPTIONS, group(r"\boxed{5}", "none"), TOKENIZER)
    assert asks[0] is not None and asks[1] is None
    assert voted_asks(OPTIONS, group("none", "nothing"), TOKENIZER) == [None, None]


def test_an_answer_that_is_not_mentioned_literally_is_asked_for_after_the_response() -> None:
    given = group(r"\boxed{1000}", r"\boxed{1000}")
    given = replace(given, rollouts=(given.rollouts[0], rollout(1, "a thousand ")))
    asks = voted_asks(OPTIONS, given, TOKENIZER)
    assert said(asks[1])[0].startswith("a thousand\nThe answer is") and said(asks[1])[1].strip() == "1000."


def test_the_winner_is_worded_as_its_shortest_member_and_by_its_name_where_none_is_left() -> None:
    given = group(r"\boxed{7}", r"\boxed{7}", r"\boxed{8}")
    assert voted_text(given) == "7"
    assert voted_text(replace(given, vote=replace(given.vote, answer="9"))) == "9"


def test_rewards_are_the_sum_of_log_probs_no_lower_than_the_floor() -> None:
    """log(1/2) + log(1/4) = -2.0794; one far below the floor of 3 nats, one not asked."""
    given = replace(group("1", "1", "none"), measured=(np.log([0.5, 0.25]), np.array([-50.0]), None))
    three = OPTIONS.model_copy(update={"floor": 3.0})
    assert likelihood_reward(three, given).tolist() == pytest.approx([-2.0794415, -3.0, -3.0])
    mean = OPTIONS.model_copy(update={"likelihood": "mean_prob"})
    assert likelihood_reward(mean, given).tolist() == pytest.approx([0.375, 0.0, 0.0])
    with pytest.raises(ValueError, match="question 'q0': not measured"):
        likelihood_reward(mean, replace(given, measured=None))


def test_equal_responses_ask_the_same() -> None:
    first, second, _ = voted_asks(OPTIONS, group(r"2 \boxed{5}", r"2 \boxed{5}", r"\boxed{5}"), TOKENIZER)
    assert first == second
