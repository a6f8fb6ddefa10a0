r"""Where responses put their final answer: `\boxed{...}`, or "the answer is ..."."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_BRACES = re.compile(r"(?P<open>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_WRAPPER = re.compile(r"(?P<open>\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{)|[{}]")
_CUE = re.compile(
    r"\bans(?:wer)?\b(?:\s+to\b[^.\n]{0,80}?)?[*_\s]*"
    r"(?:(?:is|was|(?:should|would|must|will|has to) be)\b|[:=：])[*_\s:]*+(?!not\b)"
    r"|答案\s*(?:应该是|应为|是|为|[:：])[*_\s:：]*+",
    re.IGNORECASE,
)
_MARKS = re.compile(r"\*\*|__|`|\$|\\[()\[\]]")
LOOKED_AT = 200_000
"""Characters from the end in which an answer outside a box is looked for: more is no answer, and costs time."""
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。\n]|$")
_QUOTED = re.compile(r"(?:\"([^\"]+)\"|'([^']+)'|[“‘]([^“”‘’]+)[”’])[.!]?")
_NO_ANSWER = re.compile(
    r"\b(?:more|less|fewer|greater|larger|smaller|higher|lower|longer|shorter|older|younger)\s+than\s+\$?\d[\d.,]*"
    r"|\b0x[0-9a-f]+\b",
    re.IGNORECASE,
)
_REACH = 4000  # characters from the end in which a form is looked for
_DEEPEST = 4  # forms in forms

_THOUGHT = re.compile(r"</think(?:ing)?>")
_TAG = re.compile(r"<(?:final_?)?answer>|<\|begin_of_box\|>", re.IGNORECASE)
_CLOSED = re.compile(r"</(?:final_?)?answer>|<\|end_of_box\|>", re.IGNORECASE)
_STRING = r'"(?P<text>(?:[^"\\]|\\.)*+)"'
_OTHER = r'"(?:[^"\\]|\\.)*+"'
_BARE = r'\[[^\[\]{}]*+\]|[^\s",\[\]{}]++'
_JSON = re.compile(
    rf'"(?:final[ _]?|correct[ _]?)?answer"\s*:\s*(?:{_STRING}|(?P<bare>{_BARE}))'
    rf"(?:\s*,\s*{_OTHER}\s*:\s*(?:{_OTHER}|{_BARE}))*+\s*\}}\s*(?:```)?\s*\Z",
    re.IGNORECASE | re.DOTALL,
)
_HEADING = re.compile(
    r"(?:\A|\n)[#*_ \t]*(?:(?:the|my) )?(?:final |correct )?answer[*_ \t]*:?[*_ \t]*\n\s*(?P<said>[^\n]+)\Z",
    re.IGNORECASE,
)


def unwrapped(response: str) -> str:
    r"""The part of `response` that states its answer: what follows the thinking, and of that what closes it as
    <answer>C</answer>, as JSON with a key "answer", or as one line under the heading "Final answer"; else all of it.

    A box decides before any of these: a form without one does not hide it.
    """
    for thought in _THOUGHT.finditer(response, max(0, response.rfind("</think"))):
        response = response[thought.end() :] if response[thought.end() :].strip() else response
    for _ in range(_DEEPEST):
        said = _last_form(response[-_REACH:].rstrip())
        if said is None or not re.search(r"\w", said) or (_is_boxed(response) and not _is_boxed(said)):
            break
        response = said.strip()
    return response


def _is_boxed(text: str) -> bool:
    return bool((last_boxed(text) or "").strip())


def _last_form(text: str) -> str | None:
    """What the last form of `text` holds, if nothing follows it."""
    tags = [*_TAG.finditer(text)]
    if tags:
        said, closed, rest = _parted(text[tags[-1].end() :])
        return said if not rest.strip(" \n*.") and (closed or len(said) < 200) else None
    if text.endswith(("}", "```")) and (found := _JSON.search(text)):
        return found["bare"] if found["text"] is None else _decoded(found["text"])
    heading = _HEADING.search(text) if "nswer" in text.lower() else None
    return heading["said"] if heading else None


def _parted(text: str) -> tuple[str, bool, str]:
    """What stands before the closing tag, whether there is one, and what follows."""
    closing = _CLOSED.search(text)
    return (text[: closing.start()], True, text[closing.end() :]) if closing else (text, False, "")


def _decoded(text: str) -> str:
    r"""A JSON string; LaTeX that was not escaped stays LaTeX: "\frac" is no form feed."""
    try:
        decoded = str(json.loads(f'"{text}"'))
    except ValueError:
        return text
    return decoded if decoded.isprintable() else text


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` whose braces balance, the inner one where they nest; None without any."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    last = _last_balanced(text[start:])  # nearly always there, and short
    return _last_balanced(text) if last is None else last


def _last_balanced(text: str) -> str | None:
    best: tuple[int, str] | None = None
    stack: list[tuple[int, int] | None] = []
    for token in _BRACES.finditer(text):
        if token["open"]:
            stack.append((token.start(), token.end()))
        elif token[0] == "{":
            stack.append(None)
        elif token[0] == "}" and stack:
            opened = stack.pop()
            if opened and (best is None or opened[0] > best[0]):
                best = opened[0], text[opened[1] : token.start()]
    return None if best is None else best[1]


def plain(text: str) -> str:
    r"""`text` without what carries no meaning: `\text{...}` and its kin, math dollars, bold and code marks."""
    return _MARKS.sub("", _without_wrappers(text) if "\\" in text else text)


def _without_wrappers(text: str) -> str:
    """One pass, however deep the braces nest: each wrapper that is closed loses its name and its braces."""
    kept: list[str] = []
    opened: list[int | None] = []
    end = 0
    for token in _WRAPPER.finditer(text):
        kept += text[end : token.start()], token[0]
        end = token.end()
        if token[0] != "}":
            opened.append(len(kept) - 1 if token["open"] else None)
        elif opened and (wrapper := opened.pop()) is not None:
            kept[wrapper] = kept[-1] = ""
    return "".join(kept) + text[end:]


def announced(text: str) -> Iterator[str]:
    """What follows each "answer is" or "Answer:", up to the next or the end of the sentence or line; the last first."""
    limit = len(text)
    for cue in reversed(list(_CUE.finditer(text))):
        end = _SENTENCE_END.search(text, cue.end(), limit)
        yield _unquoted(text[cue.end() : end.start() if end else limit].strip())
        limit = cue.start()


def _unquoted(statement: str) -> str:
    """`statement` without quotation marks around the whole of it."""
    quoted = _QUOTED.fullmatch(statement)
    return statement if quoted is None else quoted[1] or quoted[2] or quoted[3]


def answerable(text: str) -> str:
    """`text` without numbers that are no answer: what something is compared to ("more than 90 percent"), addresses."""
    return _NO_ANSWER.sub(" ", text)
