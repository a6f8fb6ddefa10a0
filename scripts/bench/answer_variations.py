# ruff: noqa: E501
r"""How often an answer of known meaning is read or graded wrong: 5,000 strings made by rules, by kind.

    python scripts/bench/answer_variations.py [--per-kind 500] [--show 5]

A string is a right answer, a wrong one, or none (a refusal, a text or box that breaks off, several candidates), written
in one of many forms: announced, formatted, with a unit, in a sentence around it, in English or Chinese, with small talk.
It is read wrong where a right one is not graded right, a wrong one is graded right, or one that is none is read as an
answer. The rules are ours and know the faults that were mended, so that the rates compare two versions of the readers
and estimate no rate on real responses.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mm_spine.processors.answers import grade, parse
from mm_spine.types import AnswerSpec


class Case(NamedTuple):
    """A response, the gold, and whether the response is right; None where it answers nothing."""

    spec: AnswerSpec
    response: str
    gold: tuple[str, ...]
    right: bool | None


Make = Callable[[random.Random], Case]

ANNOUNCED = (
    "{}", "The answer is {}.", "Answer: {}", "**Answer:** {}", "Final answer: {}", "So the answer is **{}**.", "<answer>{}</answer>",
    "<think>Perhaps 77, or (B).</think>The answer is {}.", "Let me look at it first.\n\nTherefore, the answer is {}.",
    "The correct answer is {}.", "### Answer\n{}", "答案是{}。", "答案：{}", "The final answer is: {}",
)  # fmt: skip
BOXES = (
    r"\boxed{{{}}}",
    r"Thus $\boxed{{{}}}$.",
    r"We try 3 first. So \(\boxed{{{}}}\).",
    r"\boxed{{\text{{{}}}}}",
    r"\fbox{{{}}}",
)
TALK = (
    ("", ""), ("", ""), ("", ""), ("Sure! ", ""), ("Certainly! ", ""), ("", " I hope this helps!"), ("", "\n\nLet me know if you have any questions."),
    ("", " Feel free to ask for more help."), ("Great question! ", " Have a great day!"),
)  # fmt: skip
REFUSALS = (
    "I cannot determine the answer from this image.", "I'm sorry, but I can't help with that.", "I do not know.",
    "It cannot be determined from the given picture.", "There is not enough information to tell.", "I am unable to see the two objects.",
    "The image does not provide any information about the three objects.", "I'm not able to tell which of the 2 it is.", "无法确定。",
)  # fmt: skip


def make_spec(kind: str, choices: tuple[str, ...] = (), question: str = "", **more: Any) -> AnswerSpec:
    """Make a spec; earlier versions of it have no field for the question."""
    if "question" in AnswerSpec.__dataclass_fields__:
        more["question"] = question
    return AnswerSpec(kind, choices, **more)


def written(said: str, draw: random.Random, boxed: bool = True) -> str:
    """Write a bare answer in one of the forms that announce one, perhaps with small talk around it."""
    forms = (*ANNOUNCED, *(BOXES if boxed and "\\text" not in said else ()))
    before, after = draw.choice(TALK)
    form = draw.choice(forms)
    return form.format(said) if form.startswith(("<", "###", "答")) else before + form.format(said) + after


def _open(said: str, draw: random.Random) -> str:
    form = draw.choice((r"So the answer is \boxed{{{}", r"Therefore, $\boxed{{\text{{{}}}", r"It is {}, so \boxed{{{}"))
    return form.format(said, said)


# Numbers.


def _number(kind: str, **more: Any) -> Make:
    def make(draw: random.Random) -> Case:
        value = draw.choice((draw.randint(2, 99), draw.randint(1000, 99999)))
        wrong = draw.random() < 0.35
        said = value + draw.choice((1, -1, 10, 3)) if wrong else value
        spec = make_spec(kind, **more)
        kind_of_text = draw.random()
        if kind_of_text < 0.08:
            return Case(spec, draw.choice(REFUSALS), (str(value),), None)
        if kind_of_text < 0.14:
            return Case(spec, _open(str(value), draw), (str(value),), None)
        if kind_of_text < 0.2:
            none = draw.choice(
                ("It is {} or {}.", "It is either {} or {}.", "It is between {} and {}.", "I get {} or maybe {}.")
            )
            return Case(spec, none.format(value, value + 1), (str(value),), None)
        if kind_of_text < 0.25:
            cut = draw.choice(
                (
                    "First there are {} of them. Next we count the ones which",
                    "The first row has {} and the",
                    "We have 5 * 7 = {} and then multiply by the",
                )
            )
            return Case(spec, cut.format(value), (str(value),), None)
        if kind_of_text < 0.45:
            sentence = draw.choice(
                (
                    "The value of $x$ is {}.",
                    "The area is (8*{})/8 = {} cm^2.",
                    "There are {} of them in total.",
                    "So we have 3 + 4, that is {}.",
                    "Answer: The value of $x$ is {}.",
                    "Answer: The area of triangle $ABC$ is ${}$.",
                    "x = {}",
                    "In total it is {} km.",
                    "The answer is {}. I used 2 images.",
                )
            )
            return Case(spec, sentence.replace("{}", str(said)), (str(value),), not wrong)
        return Case(spec, written(_form(said, draw), draw), (str(value),), not wrong)

    return make


def _form(value: int, draw: random.Random) -> str:
    forms = [
        str(value),
        f"{value}.0",
        f"{value} cm",
        f"{value}\\text{{ cm}}",
        f"{value} apples",
        f"{value}厘米",
        f"{value}°",
        f"about {value}",
        f"\\${value}",
        f"{value} cm^2",
    ]
    if value >= 1000:
        head, tail = divmod(value, 1000)
        forms += [f"{head}{mark}{tail:03d}" for mark in (",", " ", "'", "{,}")] * 2
    return draw.choice(forms)


MATH_FORMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (r"\frac{1}{2}", ("1/2", "0.5", r"\dfrac12", r"\frac{2}{4}", "½", r"50\%"), ("2", "0.2", r"\frac{2}{1}", "1:3")),
    (r"\frac{1}{3}", (r"0.\overline{3}", "1/3", r"0.333\ldots", "0.333333", r"\frac{2}{6}"), ("0.3", "0.33", "3", r"0.\overline{6}")),
    ("6", ("2(3)", "(2)(3)", r"2\cdot 3", r"\approx 6", "6厘米", r"6\text{ m}", "6 km/h", r"6^\circ"), ("2+3", "23", "5", "2(4)", "6x", "6 m+1")),
    ("1000", ("1e3", "10^3", "1,000", "1 000", r"1 \times 10^{3}", "1000.0"), ("1e4", "100", "1,0", "10^4", "1e-3")),
    ("2.5", (r"2\frac{1}{2}", "5/2", "2 1/2", "2.50", r"\frac{5}{2}"), (r"2(\frac{1}{2})", r"2\cdot\frac{1}{2}", "2/5", "25")),
    ("s^{2}-2 s", ("s^2-2s", "s(s-2)", "-2s+s^2"), ("s^2-2", "s^2", "s^2+2s")),
    ("a+2 m", ("2m+a", "a+2m"), ("a+2", "a", "2m")),
    (r"\frac{1}{20!}", (r"1/20!", r"\frac{1}{20 \cdot 19!}"), (r"\frac{1}{19!}", "0", r"\frac{2}{20!}", "10^{-18}")),
    ("2^{-98}", (r"\frac{1}{2^{98}}", r"2 \cdot 2^{-99}"), ("2^{-99}", "0", "2^{-97}", "10^{-30}")),
    ("10^{30}", (r"(10^{15})^2", r"1000^{10}"), ("10^{30}+1", "10^{29}", r"2\cdot 10^{30}")),
    ("[1,2)", (r"1\le x<2", r"x\in[1,2)", r"\left[1,2\right)"), ("(1,2)", "[1,2]", "1<x<2", "(2,1)")),
    ("(1,2)", (r"\left(1, 2\right)", "(1.0,2)"), ("(2,1)", "[1,2]", r"\{2,1\}", "1")),
    ("1,2", ("2, 1", "1 and 2", r"\{1,2\}", r"x=1 \text{ or } x=2"), ("1", "1,3", "(2,1)", "12")),
    (r"2\sqrt{3}", (r"\sqrt{12}", "2√3", r"2\sqrt3\text{ cm}", r"\frac{6}{\sqrt{3}}"), (r"3\sqrt{2}", r"\sqrt{3}", "2", "3.46")),
)  # fmt: skip


def _math(draw: random.Random) -> Case:
    if draw.random() < 0.3:
        return _number("math")(draw)
    gold, same, other = draw.choice(MATH_FORMS)
    right = draw.random() < 0.55
    said = draw.choice((gold, *same) if right else other)
    form = draw.choice(
        (*BOXES[:3], *(("The answer is ${}$.", "Answer: ${}$", "So the answer is \\({}\\).", "Final answer: ${}$")))
    )
    before, after = draw.choice(TALK)
    return Case(make_spec("math"), before + form.format(said) + after, (gold,), right)


# Letters.

OPTION_SETS = (
    ("100°", "110°", "120°", "130°"), ("aspirin", "ibuprofen", "vitamin D", "paracetamol"), ("2", "20", "4", "6"), ("Yes", "No"),
    ("increase", "decrease", "no change", "cannot be determined"), ("$1,125", "$1,200", "$900", "$750", "$1,000"), ("12 kN", "18 kN", "24.3 kN", "36 kN"),
    tuple(f"item {i} of the list" for i in range(14)), ("增加", "减少", "不变", "波动"), ("red car", "blue car", "green bus", "yellow bus"),
)  # fmt: skip
COMMITTED = (
    "{L}", "({L})", "{L}.", "**{L}**", "{L}. {T}", "({L}) {T}", "The answer is {L}.", "The answer is ({L}) {T}.", "Answer: {L}", "Answer: {L}. {T}", "\\boxed{{{L}}}",
    "\\boxed{{\\text{{({L})}}}}", "I choose {L}.", "Option {L} is correct.", "The correct option is **{L}**.", "Looking at it, it is option **{L}. {T}**.",
    "The figure shows the growth of it. ({L})", "The value is **({L}) {T}**. I hope this helps!", "因此，选项为({L})。", "答案是{L}。", "故选：{L}", "所以正确的是({L})。",
    "Answer: \\( \\text{{{L}}} \\) {T}", "Therefore, the answer is {L} because the others are too small.", "Based on the above, {L} is the most likely.", "<answer>{L}</answer>",
    "It is not {O}, so {L}.", "The answer is {T}.", "{T}", "So the final answer is {L}. Let me know if you have any questions.", "{T}. This is what the picture shows.",
)  # fmt: skip
NOT_COMMITTED = (
    "Therefore, none of the options {ALL} is correct.", "Neither {L} nor {O} is correct.", "Choose the correct option letter:\n\n{LIST}", "The options are:\n{LIST}",
    "If it is larger, then the answer is ({L}). Otherwise, the answer is ({O}).", "It could be {L} or {O}.", "{L}, {O}", "The answer is not {L}.", "{L} is wrong.",
    "Suppose the answer is ({L}).", "If it were larger, the answer would be ({L}).", "We can rule out ({L}).", "So the answer is \\boxed{{{L}", "The answer is {L} or {O}.",
    "Choose from {INLINE}.", "不选{L}", "The answer is {L} and {O}.",
)  # fmt: skip


def _letters(kind: str) -> Make:
    def make(draw: random.Random) -> Case:
        choices = draw.choice(OPTION_SETS)
        labels = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
        gold, right = draw.randrange(len(choices)), draw.random() < 0.6
        index = gold if right else draw.choice([i for i in range(len(choices)) if i != gold])
        other = labels[draw.choice([i for i in range(len(choices)) if i != index])]
        listed = "\n".join(f"({label}) {text}" for label, text in zip(labels, choices, strict=True))
        fields = {
            "L": labels[index], "T": choices[index], "O": other, "LIST": listed, "ALL": ", ".join(labels), "INLINE": listed.replace("\n", ", "),
        }  # fmt: skip
        spec = make_spec(kind, choices, **({"value_type": "text"} if kind == "typed" else {}))
        golds = (choices[gold] if kind == "typed" else labels[gold],)
        if draw.random() < 0.08:
            return Case(spec, draw.choice(REFUSALS), golds, None)
        if draw.random() < 0.25:
            return Case(spec, draw.choice(NOT_COMMITTED).format(**fields), golds, None)
        before, after = draw.choice(TALK)
        return Case(spec, before + draw.choice(COMMITTED).format(**fields) + after, golds, right)

    return make


def _math_or_choice(draw: random.Random) -> Case:
    if draw.random() < 0.5:
        return _letters("math_or_choice")(draw)
    choices = draw.choice(
        (
            ("$1,2,3,4,5$", "$2,1,3,5,4$", "$2,1,5,3,4$"),
            ("11 m", "12 m", "13 m"),
            (r"$11^{\circ}$", r"$12^{\circ}$", r"$\frac{1}{2}$"),
        )
    )
    gold = draw.randrange(3)
    right = draw.random() < 0.6
    index = gold if right else (gold + 1) % 3
    said = choices[index].strip("$")
    if not right and "," in said and draw.random() < 0.5:
        said = "5,4,3,2,1"
    form = draw.choice((r"\boxed{{{}}}", "The answer is ${}$.", "Answer: ${}$", r"So $\boxed{{{}}}$."))
    before, after = draw.choice(TALK)
    return Case(make_spec("math_or_choice", choices), before + form.format(said) + after, ("ABC"[gold],), right)


# Free text.

FREE = (
    ("What is the capital of France?", "Paris", ("Lyon", "not Paris", "London"),
     ("The capital of France is {}.", "{} is the capital of France.", "It is {}.", "It's {}.", "Capital: {}", "{}. It is the capital of France.", "The capital is {}, which is large.", "I think it is {}.")),
    ("What color is the car?", "red", ("blue", "green", "dark red"),
     ("The car is {}.", "A {} car.", "The color of the car is {}.", "It is {}.", "The car in the picture is {}.", "{}. The car stands in the sun.")),
    ("Which organ is shown in the picture?", "liver", ("lung", "kidney", "left lung"),
     ("The organ shown is the {}.", "The {} is shown.", "The {}.", "It is the {}.", "The picture shows the {}.", "The {} is shown in the picture.", "This is the {}.")),
    ("Who wrote Hamlet?", "Shakespeare", ("Marlowe", "Goethe"),
     ("{} wrote Hamlet.", "Hamlet was written by {}.", "It was written by {}.", "{}. He wrote it around 1600.", "It was {}.")),
    ("What animal is next to the dog?", "cat", ("horse", "bird", "black bird"),
     ("The animal next to the dog is a {}.", "A {} is next to the dog.", "There is a {} next to the dog.", "A {}.", "It is a {}.", "a {}")),
    ("Where is the lesion?", "left lung", ("right lung", "liver", "left kidney"),
     ("The lesion is in the {}.", "The lesion is located in the {}.", "In the {}.", "The {}.", "It is in the {}.")),
    ("Is the left or right lung affected?", "left", ("right", "both"),
     ("{}", "The answer is {}.", "{}.", "**{}**")),
    ("图中显示的是什么器官？", "肝", ("肺", "肾", "左肺"), ("图中显示的器官是{}。", "{}是图中显示的器官。", "答案是{}。", "{}", "图中显示的是{}。")),
)  # fmt: skip


def _free(kind: str, **more: Any) -> Make:
    def make(draw: random.Random) -> Case:
        question, gold, others, sentences = draw.choice(FREE)
        spec = make_spec(kind, question=question, **more)
        golds = (gold.lower(),) * 10 if kind == "vqa" else (gold,)
        right = draw.random() < 0.6
        said = gold if right else draw.choice(others)
        if draw.random() < 0.12:
            return Case(spec, draw.choice(REFUSALS), golds, None)
        if draw.random() < 0.08:
            cut = draw.choice(
                (
                    "The one that can be seen is",
                    "Looking at it, this might be the",
                    r"So the answer is \boxed{{{}",
                    "It is next to the",
                )
            )
            return Case(spec, cut.format(said), golds, None)
        before, after = draw.choice(TALK)
        if draw.random() < 0.6:
            return Case(spec, before + draw.choice(sentences).format(said) + after, golds, right)
        return Case(
            spec,
            written(draw.choice((said, said.title(), f"the {said}" if said.isascii() else said)), draw),
            golds,
            right,
        )

    return make


def _polar(kind: str) -> Make:
    def make(draw: random.Random) -> Case:
        words = ("yes", "no", "maybe") if kind == "yes_no_maybe" else ("yes", "no")
        gold = draw.choice(words)
        right = draw.random() < 0.6
        said = gold if right else draw.choice([word for word in words if word != gold])
        spec = make_spec(kind)
        if draw.random() < 0.15:
            return Case(spec, draw.choice(REFUSALS), (gold,), None)
        if draw.random() < 0.1:
            none = draw.choice((r"So the answer is \boxed{{{}", "Yes or no?", "yes or no", "It may be a yes or a no."))
            return Case(spec, none.format(said), (gold,), None)
        if draw.random() < 0.4:
            sentence = draw.choice(
                (
                    "{}, it is as it seems.",
                    "{}. The picture shows it.",
                    "The heart is large, so {}.",
                    "The lungs are clear.\n{}",
                    "In short: the answer is {}.",
                    "**{}**, as far as the picture shows.",
                )
            )
            before, after = draw.choice(TALK)
            return Case(
                spec,
                before + sentence.format(said.capitalize() if sentence.startswith(("{", "**")) else said) + after,
                (gold,),
                right,
            )
        return Case(spec, written(draw.choice((said, said.upper(), said.capitalize())), draw), (gold,), right)

    return make


def _typed(draw: random.Random) -> Case:
    made = (_number("typed", value_type="integer"), _letters("typed"), _free("typed", value_type="text"))
    return draw.choice(made)(draw)


KINDS: dict[str, Make] = {
    "choice": _letters("choice"),
    "integer": _number("integer"),
    "math": _math,
    "math_or_choice": _math_or_choice,
    "medical": _free("medical"),
    "text": _free("text"),
    "typed": _typed,
    "vqa": _free("vqa"),
    "yes_no": _polar("yes_no"),
    "yes_no_maybe": _polar("yes_no_maybe"),
}


def cases(kind: str, count: int) -> Iterator[Case]:
    """Yield `count` different cases of a kind, the same for equal arguments."""
    draw = random.Random(f"variations of {kind}")
    seen: set[Case] = set()
    while len(seen) < count:
        case = KINDS[kind](draw)
        if case not in seen:
            seen.add(case)
            yield case


def is_wrong(case: Case) -> bool:
    """Return whether the case is read or graded otherwise than it is meant."""
    answer = parse(case.response, case.spec)
    if case.right is None:
        return answer is not None
    try:
        return grade(answer, case.gold, case.spec).correct is not case.right
    # The gold itself cannot be read, such as option N where only ten have letters.
    except ValueError:
        return True


def main() -> None:
    """Print the table of error rates."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-kind", type=int, default=500)
    parser.add_argument("--show", type=int, default=0, help="how many faults of each kind are printed")
    options = parser.parse_args()
    print(
        "| kind | strings | wrong | right ones missed | wrong ones credited | none read as one |\n|---|---:|---:|---:|---:|---:|"
    )
    total = [0, 0, 0, 0]
    for kind in KINDS:
        made = list(cases(kind, options.per_kind))
        faults = [case for case in made if is_wrong(case)]
        by = [sum(case.right is meant for case in faults) for meant in (True, False, None)]
        total = [a + b for a, b in zip(total, [len(made), *by], strict=True)]
        print(f"| {kind} | {len(made)} | {len(faults) / len(made):.1%} | {by[0]} | {by[1]} | {by[2]} |")
        for case in faults[: options.show]:
            print(
                f"    {case.right} {case.response!r} gold {case.gold[0]!r}: {parse(case.response, case.spec)} {case.spec.choices}"
            )
    print(f"| all | {total[0]:,} | {sum(total[1:]) / total[0]:.1%} | {total[1]} | {total[2]} | {total[3]} |")


if __name__ == "__main__":
    main()
