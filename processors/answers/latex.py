"""Rewrite a formula, from a response or a gold, as one line of plain LaTeX: its normal form.

Spellings that stand for the same formula in MATH, AMC and MATH-Vision get one form, so that most answers compare as
text. Units, currency signs and degree signs go; the percent sign stays, for a grade needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from mm_spine.processors.answers import checker
from mm_spine.processors.answers.extraction import plain

_UNICODE = str.maketrans(
    dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}", "-")
    | dict.fromkeys("\N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}~", " ")
    | dict.fromkeys("£€¥", "")
    | {"\N{DEGREE SIGN}": r"^\circ "}
    | {"π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "θ": r"\theta ", "×": r"\times ", "·": r"\cdot "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ", "≈": r"\approx "}
    | {"²": "^2", "³": "^3", "÷": "/", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
)


def _repeating(match: re.Match[str]) -> str:
    r"""Write a repeating decimal as a fraction: 0.1\overline{6} is \frac{15}{90}."""
    whole, once, *groups = match.groups()
    period = next(group for group in groups if group)
    top = int((whole or "0") + once + period) - int((whole or "0") + once)
    return rf"\frac{{{top}}}{{{'9' * len(period)}{'0' * len(once)}}}"


# An argument of \frac: a group in braces, or the one character of \frac12.
_PIECE = r"(\{[^{}]*\}|[0-9a-z])"
_Into = str | Callable[[re.Match[str]], str]
_UNIT_NAMES = (
    "mm|cm|dm|km|nm|in|ft|yd|mi|mg|kg|lb|lbs|oz|ml|mL|dl|dL|cl|cc|gal|hr|hrs|min|sec|ms|Hz|kHz|MHz|Pa|kPa|kN|kJ|kW|kWh|eV|mA"
    "|mV|mol|mph|kmh|kph|deg|rad|sq|cu|pt|pts|day|ton|cup|man|men|pen|car|dog|cat|egg|box|way|set|row|bag|toy|pie|pcs|cal"
    "|kcal|per|USD|EUR|dB|rpm|bpm|atm|yr|yrs|wk|mol"
)
# Words of quantity stay: "5 million" is not 5.
_NO_UNIT = (
    r"(?!(?:and|or|if|for|to|hundred|thousand|million|billion|trillion|dozen|times|plus|minus|over|mod"
    r"|sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd|lcm|mod|det|lim|arcsin|arccos|arctan|sinh|cosh|tanh)\b)"
)
_EXPONENT = r"(?:\s*\^\s*\{?-?\d\}?)?"
# A unit inside \text{...} may be a single letter: 3\text{ m} is 3, while "3 m" is a product.
_NAMED_UNIT = rf"{_NO_UNIT}(?:[A-Za-z]{{2,}}\.?|[A-Za-z])(?![A-Za-z]){_EXPONENT}"
# Chinese characters behind a number are a unit, those of quantity are not: 5万 is 50000.
_HAN_UNIT = re.compile(
    r"(?<=[\d})%])\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*)?(?:(?:千[米克瓦卡帕伏])"
    r"|(?![万亿千百十零一二三四五六七八九两半分之倍\s]+)"
    r"[\u4e00-\u9fff])(?:(?![万亿])[\u4e00-\u9fff/]){0,5}\s*\}?\s*[。.]?\s*$"
)
# Applied in this order.
_REWRITES: tuple[tuple[re.Pattern[str], _Into], ...] = tuple(
    (re.compile(pattern), into)
    for pattern, into in (
        # Python's power, x**2. It must come before `plain` takes ** for bold.
        (r"(?<=[\w)}])\*\*(?=[\w({-])", "^"),
        (r"\\\$", ""),
        (r"(?<=\d)['’](?=\d{3}(?!\d))", ""),
        # "about 7" and "\approx 7" are 7.
        (
            r"^\s*(?:\$\s*)?(?:\\(?:approx|simeq|sim|thickapprox)(?![A-Za-z])|[~≈≃]|(?:about|approximately|approx\.?|roughly"
            r"|around|nearly|circa|ca\.)(?![A-Za-z])|大约|约为?)\s*(?=[\d.$\\+-])",
            "",
        ),
        # Repeating decimals.
        (
            r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{(\d{1,12})\}|(?<=\.)\((\d{1,12})\))(?:\s*\\?[lc]?dots)?",
            _repeating,
        ),
        (r"(\d*)\.(\d{0,6}?)(\d{1,3})\3{2,12}(?:\.{2,3}|…|\\[lc]?dots(?![A-Za-z]))", _repeating),
        (
            rf"(?<=[\d}})%i])[\s~]*(?:\\[,;: ])*\\(?:text|textrm|mathrm|mbox|hbox|operatorname|rm)\s*"
            rf"\{{[\s~]*(?:\\[,;: ])*"
            rf"{_NAMED_UNIT}(?:[\s/·.-]*{_NAMED_UNIT})*[\s~]*\}}{_EXPONENT}(?=\s*\$?\.?\s*$)",
            "",
        ),
        (
            r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname)\s*\{([^{}]*)\}",
            r" \1 ",
        ),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?|\\(?:displaystyle|textstyle|limits|rm|bf)(?![A-Za-z])", ""),
        # Separators of thousands: 1{,}000, 1,\!000, 1\,000.
        (r"\{,\}|,\\!", ","),
        (r"(?<=\d)\\[,!]\s*(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[,;:! ]|\\(?:quad|qquad|enspace|thinspace)(?![A-Za-z])|\s+", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\le(?:q|qslant)(?![A-Za-z])", r"\\le"),
        (r"\\ge(?:q|qslant)(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\(?:lbrace|rbrace)(?![A-Za-z])", lambda m: r"\{" if m[0][1] == "l" else r"\}"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        # A temperature: 30^\circ\text{C}.
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*[CF]\s*\.?\s*$", " "),
        (r"\s*(?:\^\s*\{\s*\\(?:circ|degree)\s*\}|\^\s*\\circ(?![A-Za-z])|\\(?:degree|deg)(?![A-Za-z]))", " "),
        (r"\\%|\bpercent\b", "%"),
        # Commands that a response spells as words.
        (r"(?<![A-Za-z\\])(?:pi|Pi)(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\])(?:infinity|inf)(?![A-Za-z])", r"\\infty "),
        (r"(?:(?<![A-Za-z\\])|\\)sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*([0-9a-z])", r"\\sqrt{\1}"),
        (rf"\\frac\s*{_PIECE}\s*{_PIECE}", lambda m: rf"\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}"),
        (r"([\^_])\s*\{\s*(\w)\s*\}", r"\1\2"),
        # x \in (1,2) names the interval.
        (r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])", ""),
    )
)
_SPACE = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])| ")
_COMMAND_SPACE = re.compile(r"(\\[A-Za-z]+) (?=[A-Za-z])")
COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]*\*?\}|\\[A-Za-z]+")
_FUNCTIONS = (
    *("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc"),
    *("log", "ln", "exp", "max", "min", "gcd", "lcm", "mod", "det", "lim"),
)
FUNCTION = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(_FUNCTIONS)})(?![a-z])")
# A unit is a word after a number and a space. A single letter, or two or three that name no unit, are variables: "2 s",
# "2 ab". MATH also has compound units: "12 miles per hour".
_UNIT_WORD = (
    rf"{_NO_UNIT}(?:[A-Za-z]{{4,}}\.?|(?:{_UNIT_NAMES})\.?|[mgsL](?=\s*/)|(?<=/)\s*[hsmL]|"
    r"(?<=[a-z]{2} per )[hsmL])(?![A-Za-z])"
    rf"{_EXPONENT}"
)
_UNIT = re.compile(rf"(?<=[\d}})%i])\s+{_UNIT_WORD}(?:[\s/-]*{_UNIT_WORD})*\s*$")
# Only these may stand right behind a number: math-verify's own list takes "ab" off "2ab".
_CLOSE_UNIT = re.compile(r"(?<=\d)(?:cm|mm|km|kg|mg|ml|mL|ft|mph|deg)(?:\^\s*\{?[23]\}?)?\s*$")
_AND = re.compile(r"\s*,?\s+(?:and|or)\s+|,\s*(?:and|or)\s+")
_EQUALS = re.compile(r"(?<![<>!:\\])=")
RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne|in|lt|gt)(?![A-Za-z])")
# What may stand before "=" as the name of a value: x, x_1, f(x), m\angle A, |AB|, "the area".
NAME = re.compile(
    r"(?:\|?(?:m\s*)?(?:\\(?:angle|triangle|overline)\s*)?\{?(?:[A-Za-z][A-Za-z ]*|\\[a-z]+)(?:_\{?\w+\}?)?'?\}?\|?)"
    r"(?:\([A-Za-z0-9 ,+-]*\))?"
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
# A rational number: 1/2, \frac{1}{2}, 1\frac{1}{2}, 0.5, 1,234.5, 2\times10^{3}; each may end in a percent sign.
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>\d++)\s*)?(?:\\frac\{{(?P<top>-?{_DIGITS})\}}\{{(?P<under>-?{_DIGITS})\}}"
    rf"|(?<![\d.])(?P<over>{_DIGITS})\s*/\s*(?P<below>{_DIGITS}))%?"
    rf"|(?P<minus>[+-]?)(?P<decimal>{_DIGITS})(?:\s*(?:\\times|\\cdot|\*)\s*10\^\{{?(?P<ten>-?\d{{1,2}})\}}?)?"
    rf"(?:[eE](?P<e>[+-]?\d{{1,3}}))?%?"
)


def normal(text: str) -> str:
    """Return the normal form of `text`; a normal form is its own. A text above `checker.LONGEST` is only stripped."""
    return text.strip() if len(text) > checker.LONGEST else _normal(text)


@lru_cache(maxsize=1 << 14)
def _normal(text: str) -> str:
    # One rewrite may enable another, as in "x = (5 cm)".
    for _ in range(6):
        before = text
        text = _result(_unwrapped(_spaced(_rewritten(text))))
        if text == before:
            break
    return text


def _rewritten(text: str) -> str:
    """Apply `_REWRITES`, and remove the markup of text and bold."""
    text = text.translate(_UNICODE)
    for pattern, into in _REWRITES:
        text = pattern.sub(into, text)
    return plain(text)


def _spaced(text: str) -> str:
    """Remove a unit, closing punctuation, and white space other than between words or numbers."""
    text = text.strip().rstrip(".,;:").strip()
    text = _HAN_UNIT.sub("", _CLOSE_UNIT.sub("", text))
    if (unit := _UNIT.search(text)) and not wordy(text[: unit.start()]):
        text = text[: unit.start()]
    # "1 and 2" is the list 1,2; in a sentence "and" joins words.
    joined = _AND.sub(",", text)
    text = joined if joined != text and not wordy(joined) else text
    if re.fullmatch(r"-?\d{1,3}(?: \d{3})+", text):
        text = text.replace(" ", "")
    # The space that ends a command before a letter is kept: a null stands for it while the other spaces go.
    text = _COMMAND_SPACE.sub("\\1\0", text)
    return _SPACE.sub(lambda m: m[0] if _between_words(text, m.start()) else "", text).replace("\0", " ")


def _between_words(text: str, place: int) -> bool:
    """Return whether the space at `place` stands between two letters or digits."""
    return text[place - 1 : place].isalnum() and text[place + 1 : place + 2].isalnum()


def _unwrapped(text: str) -> str:
    r"""Remove one pair of brackets around the whole: "(5)", "{5}", "\{5\}", but not of a list, such as "(1,234)"."""
    width = 2 if text.startswith(r"\{") and text.endswith(r"\}") else 1
    inner = text[width:-width]
    if inner and text[:width] + text[-width:] in ("()", "[]", "{}", r"\{\}") and "," not in inner and encloses(text):
        return inner.strip()
    return text


def _result(text: str) -> str:
    """Return what a chain of equations comes to: "3+4=7" is 7, "x=5" is 5, "y=2x+1" stays."""
    # "2\sqrt{3} \approx 3.46" is answered exactly by its left side, "x \approx 3.46" by its right one.
    head, approx, tail = text.partition(r"\approx")
    if approx:
        text = f"{head}={tail}" if NAME.fullmatch(head.strip()) else head if head.strip() else tail
    if len(split(text)) != 1 and not _only_first_names(text):
        return text
    parts = [part.strip() for part in _EQUALS.split(text)]
    if len(parts) == 1 or not all(parts) or len(RELATION.findall(text)) != len(parts) - 1:
        return text
    # Where a side still has letters, the equation is the answer; a chain keeps its first and last side.
    first, last = parts[0], parts[-1]
    named = NAME.fullmatch(first) is not None
    said = not _letters(last) if named else not _letters(first)
    return last if said else f"{first}={last}"


def _only_first_names(text: str) -> bool:
    """Return whether the values of a list are named once, at the front, as in "x=1,2"."""
    first, *others = split(text)
    return "=" in first and not any("=" in other for other in others)


def _letters(text: str) -> str:
    """Return the letters of `text` outside LaTeX commands."""
    return "".join(re.findall(r"[A-Za-z]+", COMMAND.sub(" ", text)))


def wordy(text: str) -> bool:
    """Return whether `text` is words, to be compared as text: to computer algebra "none" is a product of letters."""
    words = re.findall(r"[A-Za-z]+", FUNCTION.sub(" ", COMMAND.sub(" ", text)))
    if any(len(word) > 3 for word in words) or re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", text):
        return True
    return re.fullmatch(r"[A-Za-z' ,.()-]+", text) is not None and any(len(word) > 2 for word in words)


def split(text: str, thousands: bool = True) -> list[str]:
    """Split `text` at its outermost commas and semicolons. With `thousands`, "1,234" is one number."""
    if thousands and NUMBER.fullmatch(text):
        return [text]
    depth, start, parts = 0, 0, []
    for mark in re.finditer(r"\\?[()\[\]{},;]", text):
        depth += (mark[0][-1] in "([{") - (mark[0][-1] in ")]}")
        if depth == 0 and mark[0] in ",;":
            parts.append(text[start : mark.start()].strip())
            start = mark.end()
    return [*parts, text[start:].strip()]


def encloses(text: str) -> bool:
    """Return whether the first bracket closes with the last one."""
    depth = 0
    for mark in re.finditer(r"[()\[\]{}]", text):
        depth += 1 if mark[0] in "([{" else -1
        if depth == 0:
            return mark.end() == len(text)
    return False
