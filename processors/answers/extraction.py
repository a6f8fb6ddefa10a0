r"""Find the part of a response that states its answer, whatever the kind of answer.

`unwrapped` reduces a response to its final form: what is outside the thinking, an <answer> tag, JSON, a heading.
`last_boxed` and `announced` then find `\boxed{...}` and "the answer is ...".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache

from mm_spine.processors.answers.statements import unfinished

LOOKED_AT = 200_000
"""Characters from the end in which an answer outside a box is looked for; a longer search only costs time."""

_BRACES = re.compile(r"(?P<open>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_WRAPPER = re.compile(r"(?P<open>\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{)|[{}]")
# "The answer is", "The answer to the question would be", "Answer:", "**Answer**:", and the same in Chinese (GeoQA+,
# SLAKE). "The answer is not B" announces nothing.
_CUE = re.compile(
    r"\bans(?:wer)?\b(?:\s+to\b[^.\n]{0,80}?)?[*_\s]*"
    r"(?:(?:is|was|(?:should|would|must|will|has to) be)\b|[:=：])[*_\s:]*+(?!not\b)"
    r"|答案\s*(?:应该是|应为|是|为|[:：])[*_\s:：]*+",
    re.IGNORECASE,
)
# "So our answer is correct." says how good an answer is.
_OWNED = re.compile(r"\b(?:our|my|this|that|your|his|her|their)\s+(?:final\s+|own\s+)?\Z", re.IGNORECASE)
_VERIFIED = re.compile(
    r"(?:indeed |also |therefore |thus )?(?:correct|right|wrong|incorrect|confirmed|verified|consistent|reasonable"
    r"|valid|as (?:follows|above|below))\b[^.]{0,40}",
    re.IGNORECASE,
)
# Bold, code, and the delimiters of LaTeX mathematics.
_MARKS = re.compile(r"\*\*|__|`|\$|\\[()\[\]]")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。\n]|$")
_QUOTED = re.compile(r"(?:\"([^\"]+)\"|'([^']+)'|[“‘]([^“”‘’]+)[”’])[.!]?")
# In "There are 2 shelves with more than 5 books." the answer is 2. "<picture at 0x7f31a20>" holds no number.
_NO_ANSWER = re.compile(
    r"\b(?:more|less|fewer|greater|larger|smaller|higher|lower|longer|shorter|older|younger)\s+than\s+\$?\d[\d.,]*"
    r"|\b0x[0-9a-f]+\b",
    re.IGNORECASE,
)

# Digits in groups of three behind a space or an apostrophe.
_GROUPED = re.compile(r"(?<![\w.,'’])[0-9]{1,3}(?:(?:[ \u00a0\u2009\u202f][0-9]{3})+|(?:['’][0-9]{3})+)(?![\w'’])")
_SEPARATOR = re.compile(r"[^0-9]")

# The final form of a response.

_REACH = 4000  # characters from the end in which a form is looked for
_DEEPEST = 4  # forms that may stand in each other, such as JSON in a tag

# Qwen3, DeepSeek-R1 and GLM write <think>, Kimi-VL writes ◁think▷, Magistral [THINK], Seed <seed:think>.
_THOUGHT = re.compile(
    r"(?P<open><(?:seed:)?think(?:ing)?>|◁think▷|\[THINK\]|<\|START_THINKING\|>)"
    r"|</(?:seed:)?think(?:ing)?>|◁/think▷|\[/THINK\]|<\|END_THINKING\|>"
)
# GLM-4.5V writes <|begin_of_box|>C<|end_of_box|>.
_TAG = re.compile(r"<(?:final_?)?answer>|<\|begin_of_box\|>", re.IGNORECASE)
_CLOSED = re.compile(r"</(?:final_?)?answer>|<\|end_of_box\|>", re.IGNORECASE)
_STRING = r'"(?P<text>(?:[^"\\]|\\.)*+)"'
_OTHER = r'"(?:[^"\\]|\\.)*+"'
_BARE = r'\[[^\[\]{}]*+\]|[^\s",\[\]{}]++'
# The key "answer" of the object that ends the response; keys may follow it, nothing else but a code fence.
_JSON = re.compile(
    rf'"(?:final[ _]?|correct[ _]?)?answer"\s*:\s*(?:{_STRING}|(?P<bare>{_BARE}))'
    rf"(?:\s*,\s*{_OTHER}\s*:\s*(?:{_OTHER}|{_BARE}))*+\s*\}}\s*(?:```)?\s*\Z",
    re.IGNORECASE | re.DOTALL,
)
# A heading and one line below it, at the end: two lines state more than an answer.
_HEADING = re.compile(
    r"(?:\A|\n)[#*_ \t]*(?:(?:the|my) )?(?:final |correct )?answer[*_ \t]*:?[*_ \t]*\n\s*(?P<said>[^\n]+)\Z",
    re.IGNORECASE,
)


def unwrapped(response: str) -> str:
    r"""Return the part of `response` that states its answer.

    This is what stands outside the thinking; within that, what an <answer> tag, the key "answer" of JSON, or one line
    under the heading "Final answer" holds at the end. Without any of these it is all of `response`.
    """
    response = without_thinking(response)
    for _ in range(_DEEPEST):
        said = _last_form(response[-_REACH:].rstrip())
        # A box outranks the other forms: a form without a box must not hide one.
        if said is None or not re.search(r"\w", said) or (_is_boxed(response) and not _is_boxed(said)):
            break
        response = said.strip()
    return response


def without_thinking(response: str) -> str:
    """Remove the blocks <think>...</think>, whatever the model's tags; return "" where the last is left open.

    What stands before a closing tag without an opening one is thinking too: some chat templates open the block.
    """
    kept: list[str] = []
    end, thinking = 0, False
    for tag in _THOUGHT.finditer(response):
        if tag["open"]:
            kept += [] if thinking else [response[end : tag.start()]]
        elif not thinking:
            kept.clear()
        thinking, end = bool(tag["open"]), tag.end()
    return "" if thinking else "".join([*kept, response[end:]])


def closes_thinking(response: str) -> bool:
    """Whether a block of thinking ends in `response`."""
    return any(not tag["open"] for tag in _THOUGHT.finditer(response))


def opened_thinking(prompt: str) -> str:
    """Return the tag with which `prompt` opens a block of thinking at its end, "" if it opens none."""
    *_, last = [None, *_THOUGHT.finditer(prompt)]
    return last[0] if last and last["open"] and not prompt[last.end() :].strip() else ""


def _is_boxed(text: str) -> bool:
    return bool((last_boxed(text) or "").strip())


def _last_form(text: str) -> str | None:
    """Return what the last form of `text` holds, None if something follows it."""
    tags = [*_TAG.finditer(text)]
    if tags:
        said, closed, rest = _parted(text[tags[-1].end() :])
        # A stop string may have cut off the closing tag; a long text without one is no answer.
        return said if not rest.strip(" \n*.") and (closed or len(said) < 200) else None
    if text.endswith(("}", "```")) and (found := _JSON.search(text)):
        return found["bare"] if found["text"] is None else _decoded(found["text"])
    heading = _HEADING.search(text) if "nswer" in text.lower() else None
    return heading["said"] if heading else None


def _parted(text: str) -> tuple[str, bool, str]:
    """Split `text` at its closing tag: what stands before it, whether there is one, and what follows."""
    closing = _CLOSED.search(text)
    return (text[: closing.start()], True, text[closing.end() :]) if closing else (text, False, "")


def _decoded(text: str) -> str:
    """Decode the inside of a JSON string."""
    try:
        decoded = str(json.loads(f'"{text}"'))
    except ValueError:
        return text
    # Models often do not escape LaTeX in JSON: "\\frac" then decodes to a form feed and "rac".
    return decoded if decoded.isprintable() else text


@lru_cache(maxsize=16)
def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}` whose braces balance, the inner one where they nest, else None."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    # The last box nearly always balances, and is short.
    last = _last_balanced(text[start:])
    return _last_balanced(text) if last is None else last


def _last_balanced(text: str) -> str | None:
    """Return the content of the balanced box that begins last."""
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
    r"""Remove markup that carries no meaning: `\text{...}` and the like, math dollars, bold and code marks."""
    return _MARKS.sub("", _without_wrappers(text) if "\\" in text else text)


def _without_wrappers(text: str) -> str:
    """Remove the name and the braces of every wrapper that is closed."""
    # One pass, however deep the braces nest: replacing by a regex would take one pass for each level.
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
    """Yield what follows each "answer is" or "Answer:", the last first.

    Each statement ends with its sentence, its line, or where the next one begins. A statement that breaks off at the
    end of `text` ends the search: whatever it was to be, it replaced those before it. "So our answer is correct"
    announces nothing.
    """
    limit = len(text)
    for cue in reversed(list(_CUE.finditer(text))):
        end = _SENTENCE_END.search(text, cue.end(), limit)
        statement = text[cue.end() : end.start() if end else limit].strip()
        if limit == len(text) and not text[end.start() if end else limit :].strip() and unfinished(statement):
            return
        if not (_OWNED.search(text, max(0, cue.start() - 20), cue.start()) and _VERIFIED.fullmatch(statement)):
            yield _unquoted(statement)
        limit = cue.start()


def _unquoted(statement: str) -> str:
    """Remove quotation marks around the whole of `statement`."""
    quoted = _QUOTED.fullmatch(statement)
    return statement if quoted is None else quoted[1] or quoted[2] or quoted[3]


def answerable(text: str) -> str:
    """Remove numbers that are no answer: those compared with ("more than 90 percent") and memory addresses."""
    return _NO_ANSWER.sub(" ", text)


def ungrouped(text: str) -> str:
    """Write digits in groups of three as one number: "12 500" and "12'500" are 12500."""
    return _GROUPED.sub(lambda match: _SEPARATOR.sub("", match[0]), text)


def before_open_box(response: str) -> str | None:
    r"""Return what `response` says before a `\boxed{` that never closes; None if it has none, or a closed box.

    A box is left open where a response was cut off. What it holds, and a number on the way to it, is no answer.
    """
    if "\\boxed" not in response or (last_boxed(response) or "").strip():
        return None
    stack: list[int | None] = []
    for token in _BRACES.finditer(response):
        if token["open"]:
            stack.append(token.start())
        elif token[0] == "{":
            stack.append(None)
        elif token[0] == "}" and stack:
            stack.pop()
    opened = next((start for start in stack if start is not None), None)
    return None if opened is None else response[:opened]
