"""Letters of multiple choice. Only a commitment counts: never a letter merely mentioned, eliminated or guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mm_spine.processors.answers import text as free_text
from mm_spine.processors.answers.boxed import last_boxed, plain
from mm_spine.processors.answers.kind import UNPARSED, Kind, keyed, read_golds, verdict
from mm_spine.types import Answer, AnswerSpec, Verdict

LABELS = "ABCDEFGHIJ"

_BECAUSE = r"(?:because|since|as|given|due)\b"
_ANOTHER = r"(?!\s*(?:,|/|&|\band\b|\bor\b)\s*(?:and |or )?\(?[A-J]\)?\s*(?:[.,;)\n]|$))"
# A bare "a" is the article, and so is "A" before a word that does not open a reason: neither is an option.
_LETTER = re.compile(
    rf"(?:[(\[](?P<inside>[A-Ja-j])[)\]]|(?P<bare>[A-Jb-j])(?=\s*(?:[.,;:!)(\n\"]|$)|,?\s+{_BECAUSE}|\s+[-–—]\s)){_ANOTHER}"
)
_NOUN = r"(?:answer|option|choice|letter)"
_BE = r"(?:is|was|(?:should|would|must|will|has to) be)"
_HEDGE = r"(?:(?:clearly|therefore|thus|likely|most likely|probably|definitely|simply|indeed)[,\s]+)?"
_CUE = re.compile(
    rf"\b(?:{_NOUN}\b(?:\s+to\b[^.\n]{{0,80}}?)?\s*(?:{_BE}\b|[:=])"
    rf"|choose|chose|pick|select|go with|it(?:'s|\u2019s| is| must be)|(?:so|therefore|thus|hence)\b,?)"
    rf"(?!\s+not\b)[\s:\"']*+"
    rf"{_HEDGE}(?:the\s+)?(?:(?:correct|best|right|final)\s+)?(?:{_NOUN}\b\s*(?:{_BE}\b)?[\s:]*)?",
    re.IGNORECASE,
)
_APPROVED = re.compile(
    rf"(?:^|[.;:,\n][^\S\n]*|\b(?i:{_NOUN}|that|so|thus|therefore|hence)\s+)[(\[]?(?P<letter>[A-J])[)\]]?(?:\s*\([^()\n]*\))?\s+"
    rf"(?i:{_BE}|seems|looks)\s+{_HEDGE}(?:the\s+)?(?:correct|right|best|most likely)"
    rf"(?:\s+(?:{_NOUN}|one|diagnosis)\b|\s*[.,;!\n]|\s*$|\s+{_BECAUSE})"
)
_DENIAL = re.compile(
    r"(?:\b(?:not|neither|nor|never|cannot|if|whether|unless)\b|n['’]t\b)(?!.*\b(?:but|so|hence|thus)\b)", re.I
)
_ELIMINATED = re.compile(
    r"\b(?:wrong|incorrect|false|not|isn't|eliminated?|excluded?|ruled out|unlikely|impossible|implausible)\b", re.I
)
_ALONE = re.compile(r"[(\[]?([A-Ja-j])[)\]]?[.:]?")
_LABELLED = re.compile(rf"[(\[]?([A-J])(?:[)\]][.:]?|[.:]|(?=,?\s+{_BECAUSE}|\s+[-–—]\s))\s*(.*)", re.DOTALL)
_OWN_LABEL = re.compile(r"[(\[]?([A-J])(?:[)\]][.:]?|[.:])\s*(?=\S)")
_REACH = 100  # characters that a clause may take: keeps a response that repeats itself linear
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n|\Z")


def option_text(spec: AnswerSpec, index: int) -> str | None:
    """Option `index` as normalised text, without its own label: "B. aspirin" is "aspirin"."""
    option = spec.choices[index]
    label = _OWN_LABEL.match(option)
    return free_text.read(option[label.end() :] if label and label[1] == LABELS[index : index + 1] else option, spec)


def read(text: str, spec: AnswerSpec) -> str | None:
    """The letter of a bare answer: "B", "(B)", "B. aspirin", or an option's own text."""
    text = _clean(text).strip()
    if alone := _ALONE.fullmatch(text):
        return _valid(alone[1], spec)
    return _labelled(text, spec) or _by_text(text, spec)


def find(response: str, spec: AnswerSpec) -> str | None:
    """Boxed; else the last announced; else a line that is an answer; else the one option that a line spells out."""
    box = last_boxed(response)
    if box is not None:
        return read(box, spec)
    text = _clean(response)
    if committed := max(_committed(text, spec), default=None):
        return committed[1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if alone := [label for line in lines if (match := _ALONE.fullmatch(line)) and (label := _valid(match[1], spec))]:
        return alone[-1]
    # Several different lines of this form are the list of options repeated, not an answer.
    spelled = {label for line in lines if (label := _labelled(line, spec) or _by_text(line, spec))}
    return spelled.pop() if len(spelled) == 1 else None


def _clean(text: str) -> str:
    return re.sub(r"[*_]", "", plain(text))


def _options(spec: AnswerSpec) -> Iterator[tuple[int, str]]:
    return enumerate(LABELS[: len(spec.choices)])


def _valid(letter: str, spec: AnswerSpec) -> str | None:
    letter = letter.upper()
    return letter if letter in LABELS[: len(spec.choices) or None] else None


def _by_text(text: str, spec: AnswerSpec) -> str | None:
    wanted = free_text.read(text, spec)
    matches = [label for i, label in _options(spec) if wanted and option_text(spec, i) == wanted]
    return matches[0] if len(matches) == 1 else None


def _labelled(line: str, spec: AnswerSpec) -> str | None:
    """The letter of "B. aspirin" or "B because ...", unless the rest rejects it ("A. is wrong")."""
    match = _LABELLED.fullmatch(line)
    label = _valid(match[1], spec) if match else None
    if match is None or label is None:
        return None
    return None if _by_text(match[2], spec) != label and _rejects(line, match) else label


def _rejects(line: str, match: re.Match[str]) -> bool:
    """Words of rejection right after the letter; those of a reason ("B because A is wrong") concern the others."""
    return re.match(_BECAUSE, match[2]) is None and _ELIMINATED.search(match[2]) is not None


def _committed(text: str, spec: AnswerSpec) -> Iterator[tuple[int, str]]:
    """(position, letter) of each announcement: "the answer is B", "so (B)", "B is correct", "the answer is aspirin"."""
    for cue in _CUE.finditer(text):
        letter = _LETTER.match(text, cue.end())
        label = _valid(letter["inside"] or letter["bare"], spec) if letter else _announced_text(text, cue.end(), spec)
        if label and not _denied(text, cue.start()):
            yield cue.start(), label
    for claim in _APPROVED.finditer(text):
        if (label := _valid(claim["letter"], spec)) and not _denied(text, claim.start("letter")):
            yield claim.start("letter"), label


def _denied(text: str, start: int) -> bool:
    """Whether the clause up to `start` negates or supposes what follows it."""
    return _DENIAL.search(re.split(r"[,.;:!?\n]", text[max(0, start - _REACH) : start])[-1]) is not None


def _announced_text(text: str, start: int, spec: AnswerSpec) -> str | None:
    """The option whose text opens the statement at `start`, the longest where several do."""
    reach = start + max([_REACH, *map(len, spec.choices)])
    end = _SENTENCE_END.search(text, start, reach)
    said = free_text.read(text[start : end.start() if end else reach], spec) or ""
    said = re.sub(r"^(?:an?|the)\s+", "", said)
    fits: list[tuple[int, str]] = []
    for i, label in _options(spec):
        option = re.sub(r"^(?:an?|the)\s+", "", option_text(spec, i) or "")
        whole = re.match(re.escape(option) + r"(?=$|[\s,;:.!()](?!\d))", said)
        if whole and (len(option) > 1 or option.isdigit()):
            fits.append((len(option), label))
    return max(fits)[1] if fits else None


def _grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
    """A letter is right when it is the gold's label, or, where options are letters, the text of the gold's option."""
    labels = read_golds(golds, spec, read)
    if answer is None:
        return UNPARSED
    texts = {option_text(spec, LABELS.index(label)) for label in labels} if spec.choices else set()
    return verdict(answer.text in labels or free_text.read(answer.text, spec) in texts, answer.text, labels)


_KEYED = keyed(find, read)
KIND = Kind(_KEYED.parse, _KEYED.same, _grade)
