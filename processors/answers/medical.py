"""Short medical answers in English and Chinese, compared by SLAKE's grading rules.

B. Liu et al. (2021). SLAKE: A Semantically-Labeled Knowledge-Enhanced Dataset for Medical Visual Question Answering.
arXiv 2102.09542. The paper evaluates a classifier and has no text rules. These are the rules that lmms-eval's and
evalscope's SLAKE tasks share: lower case, no "(...)", punctuation to spaces, x-ray as one word, and one word for each
way to say yes or no. Keys are compared exactly: a part of an answer scores 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from itertools import islice

from mm_spine.processors.answers import sentences, yes_no
from mm_spine.processors.answers.extraction import announced, last_boxed, plain
from mm_spine.processors.answers.kind import keyed
from mm_spine.processors.answers.statements import refuses, unfinished
from mm_spine.processors.answers.text import first_sentence
from mm_spine.types import AnswerSpec

CLOSED = ("yes", "no")
"""The choices of a spec whose question is answered with yes or no. The prompt lists none, so letters mean nothing."""

_POLAR_SPEC = AnswerSpec("yes_no")

# Only whole answers: "no abnormality" and "有气胸" are findings, and so are 正常 (normal) and 异常 (abnormal).
_YES = "yes yeah yep yup true 是 是的 有 有的 对 对的 存在 包含 可以 能 会"
_NO = "no nope false 否 不 不是 没 没有 无 不对 不存在 不包含 不可以 不能 不会 不正常"
_POLAR = dict.fromkeys(_YES.split(), "yes") | dict.fromkeys(_NO.split(), "no")
_XRAYS = frozenset({"x光", "x 光", "x射线", "x 射线", "x线", "x 线", "x光片", "x线片"})
_COUNTING = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(value) for value, word in enumerate(_COUNTING.split())}

_SEPARATOR = re.compile(r"[,;、/&|。]|\b(?:and|as well as)\b|(?<=[\u4e00-\u9fff])(?:以及|和|与|及)(?=[\u4e00-\u9fff])")
# All but a point between digits (1.5) and the sign at the end of a marker (CD10+ is not CD10-).
_PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|[+-](?=\w)|(?<!\w)[+-]|[^\w\s.+-]")
# "a" goes only at the beginning of an answer: "hepatitis A" keeps it.
_ARTICLES = re.compile(r"\A(?:(?:an?|the) )+(?=.)|\bthe (?=.)")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

_STATED = re.compile(r"(?:答案|结论|答)\s*(?:应该是|应为|是|为|[:：])\s*[:：]?")
_STATEMENT_END = re.compile(r"[。！？!?\n]|\.(?=\s)|$")
_ALONE = r"(?=[\W_]|$)"
# A repeated question (是否, 有没有) and an open statement (有可能, 无法确定) commit to nothing.
_CHINESE = re.compile(
    rf"[\W_]*(?:(?P<yes>(?:是的?|有的|对的?|能|会|可以){_ALONE}|(?:存在|包含|有)(?![可时没無无待些不与]))"
    rf"|(?P<no>(?:否|不|没|不对|不会|不能){_ALONE}|不是(?!很?(?:确定|清楚|肯定))|没有(?!把握)|无(?![法疑论意])"
    r"|未见|未发现|不存在|不包含|不可以))"
)

_UNDECIDED = re.compile(rf"{yes_no.UNDECIDED.pattern}|无法|不确定|不能确定|不清楚|是否|\byes\W+(?:or\W+)?no\b", re.I)

_LONGEST = 4000  # characters of a short answer, wherever it stands
_LONGEST_ANSWER = 200  # characters of a response that is one line and may be an answer as a whole
_LONGEST_LINE = 60  # characters of a last line after reasoning that may be the answer
_LAST = 100  # announcements that are looked at, from the end
_REACH = 1000  # characters of a statement that are looked at for the word that it begins with


def read(text: str, spec: AnswerSpec) -> str | None:
    """Return the key of a bare answer, None if nothing is left; for a closed question yes or no if the text says so.

    Several values ("Lung, Liver", "肺、肝") keep their order if `spec.ordered`, else they are sorted.
    """
    key = _core(text, spec)
    if spec.choices != CLOSED or key in CLOSED:
        return key
    return yes_no.read(text, _POLAR_SPEC) or _chinese(text) or (None if _UNDECIDED.search(text) else key)


def find(response: str, spec: AnswerSpec) -> str | None:
    """Return the boxed answer, else the announced one, else a short response or the short last line of a long one.

    For a closed question, any response that says yes or no is an answer: "No pneumothorax is seen", "没有气胸".
    """
    box = last_boxed(response)
    if box is not None and box.strip():
        return read(box, spec)
    if box is None and spec.choices != CLOSED and refuses(first_sentence(response)):
        return None
    statements = (*islice(announced(response), _LAST), *_stated(response))
    said = (key for text in statements if not refuses(text) and (key := read(text, spec)))
    if key := next(said, None):
        return key
    if spec.choices == CLOSED:
        return _closed(response, spec)
    whole = _short(response) if box is None else ""
    return None if unfinished(whole) or refuses(first_sentence(whole)) else _core(whole, spec)


def _closed(response: str, spec: AnswerSpec) -> str | None:
    """Return the yes or no of a response to a closed question, in English, then in Chinese."""
    key = _key(_short(response), spec)
    lines = response.strip().splitlines()
    chinese = (key for line in (*lines[:1], *lines[-1:]) if (key := _chinese(line)))
    return key if key in CLOSED else yes_no.find(response, _POLAR_SPEC) or next(chinese, None)


def _chinese(text: str) -> str | None:
    """Return the yes or no that a Chinese statement begins with; None for a question ("有气胸吗？")."""
    end = _STATEMENT_END.search(text[:_REACH])
    statement = text[: end.end()] if end else text[:_REACH]
    match = _CHINESE.match(statement)
    return match.lastgroup if match and not re.search(r"[吗呢?？]\W*\Z", statement[-_LONGEST_LINE:]) else None


def _stated(text: str) -> Iterator[str]:
    """Yield what follows each "答案是" or "答：", up to the end of the sentence; the last first."""
    limit = len(text)
    for cue in reversed(deque(_STATED.finditer(text), _LAST)):
        end = _STATEMENT_END.search(text, cue.end(), limit)
        yield text[cue.end() : end.start() if end else limit]
        limit = cue.start()


def _short(response: str) -> str:
    """Return the last line if it is short enough to be an answer, else "". It is never cut to a piece."""
    lines = response.strip().splitlines()
    longest = _LONGEST_ANSWER if len(lines) == 1 else _LONGEST_LINE
    return lines[-1] if lines and len(lines[-1]) <= longest else ""


def _core(text: str, spec: AnswerSpec) -> str | None:
    """Return the key of what `text` adds to its question."""
    if not spec.question:
        return _key(text, spec)
    key: str | None = plain(text)
    # What is cut may leave more to cut; a key reads back as itself.
    for _ in range(4):
        before, key = key, _key(sentences.core(key, spec.question), spec) if key else None
        if key == before:
            break
    return key


def _key(text: str, spec: AnswerSpec) -> str | None:
    """Return the values of `text` by the grading rules; "yes" and "no" for the words of `_POLAR`."""
    if len(text) > _LONGEST:
        return None
    text = _unparenthesised(_INVISIBLE.sub("", unicodedata.normalize("NFKC", plain(text)).lower()).replace("_", " "))
    if spec.ordered:
        key = _value(_SEPARATOR.sub(" ", text))
    else:
        key = ", ".join(sorted(value for part in _SEPARATOR.split(text) if (value := _value(part))))
    return _POLAR.get(key, key) or None


def _value(text: str) -> str:
    """Remove punctuation and articles, write numbers as digits, and x-ray as one word."""
    words = _ARTICLES.sub("", " ".join(_PUNCTUATION.sub(" ", text).split()))
    words = " ".join(_NUMBERS.get(word, word) for word in words.split())
    return "xray" if words in _XRAYS else re.sub(r"\bx ray", "xray", words)


def _unparenthesised(text: str) -> str:
    """Remove what stands in balanced parentheses, unless nothing else is left: "(lung)"."""
    kept: list[str] = []
    opened: list[int] = []
    for piece in re.split(r"([()])", text):
        if piece == "(":
            opened.append(len(kept))
        if piece == ")" and opened:
            del kept[opened.pop() :]
            kept.append(" ")
        else:
            kept.append(piece)
    outside = "".join(kept)
    return outside if re.search(r"\w", outside) else text


KIND = keyed(find, read)
