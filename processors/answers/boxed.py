r"""Where responses put their final answer: `\boxed{...}`, or "the answer is ..."."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BRACES = re.compile(r"(?P<open>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*)\}")
_CUE = re.compile(
    r"\banswer\b(?:\s+to\b[^.\n]{0,80}?)?[*_\s]*"
    r"(?:(?:is|was|(?:should|would|must|will|has to) be)\b|[:=])[*_\s:]*+(?!not\b)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n|$")


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` whose braces balance, the inner one where they nest; None without any."""
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
    while (unwrapped := _WRAPPER.sub(r"\1", text)) != text:
        text = unwrapped
    return re.sub(r"\*\*|__|`|\$|\\[()\[\]]", "", text)


def announced(text: str) -> Iterator[str]:
    """What follows each "answer is" or "Answer:", up to the next or the end of the sentence or line; the last first."""
    limit = len(text)
    for cue in reversed(list(_CUE.finditer(text))):
        end = _SENTENCE_END.search(text, cue.end(), limit)
        yield text[cue.end() : end.start() if end else limit].strip()
        limit = cue.start()
