"""Letters of multiple choice (MMMU, GPQA, MedQA, ScienceQA and others).

A letter counts only if the response commits to it, never if it is merely mentioned, eliminated or guessed. Graders that
draw a letter at random when they find none (MMMU, lmms-eval) would add votes that nobody cast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from mm_spine.processors.answers import text as free_text
from mm_spine.processors.answers.extraction import LOOKED_AT, last_boxed, plain
from mm_spine.processors.answers.kind import UNPARSED, Kind, keyed, read_golds, verdict
from mm_spine.types import Answer, AnswerSpec, Verdict

LABELS = "ABCDEFGHIJ"

_BECAUSE = r"(?:because|since|as|given|due)\b"
# A second letter behind the first: "B and C", "A/B".
_NEXT = r"\s*(?:,|/|&|\band\b|\bor\b)\s*(?:and |or )?\(?[A-J]\)?\s*(?:[.,;)\n]|$)"
# A bare "a" is the article, and so is "A" before a word that does not open a reason: neither is an option.
_LETTER = re.compile(
    r"(?:[(\[](?P<inside>[A-Ja-j])[)\]]|(?P<bare>[A-Jb-j])"
    rf"(?=\s*(?:[.,;:!)(\n\"'”’|<项选](?!s\b)|$)|,?\s+{_BECAUSE}|\s+[-–—]\s))(?!{_NEXT})"
)
_SEVERAL = re.compile(rf"\(?[A-J]\)?{_NEXT}")
_NOUN = r"(?:answer|ans|option|choice|letter)"
_BE = r"(?:is|was|(?:should|would|must|will|has to) be)"
_HEDGE = r"(?:(?:clearly|therefore|thus|likely|most likely|probably|definitely|simply|indeed)[,\s]+)?"
# What announces a letter: "The correct answer is option", "| Answer |", "I would go with", "So the". Not "is not".
_CUE = re.compile(
    rf"\b(?:{_NOUN}\b(?:\s+to\b[^.\n]{{0,80}}?)?\s*(?:{_BE}\b|[:=|>]|[-–—](?=\s))"
    rf"|choose|chose|pick|select|go with|it(?:'s|\u2019s| is| must be)|(?:so|therefore|thus|hence)\b,?)"
    rf"(?!\s+not\b)[\s:\"'“‘]*+"
    rf"{_HEDGE}(?:the\s+)?(?:(?:correct|best|right|final)\s+)?(?:{_NOUN}\b\s*(?:{_BE}\b)?[\s:]*)?",
    re.IGNORECASE,
)
# The same in Chinese (GeoQA+, SLAKE): "答案是", "故选：", but neither "不选" nor "选项".
_HAN_CUE = re.compile(
    r"(?:(?:答案|正确选项)\s*(?:应该|应)?\s*[是为:]|(?<!不)(?<!正确)选(?!项))[择\s:]*+(?:选项|选)?\s*"
)
# "B is correct", "Option (B) is the most likely diagnosis", "so B is the best choice".
_APPROVED = re.compile(
    rf"(?:^|[.;:,\n][^\S\n]*|\b(?i:{_NOUN}|that|so|thus|therefore|hence)\s+)"
    rf"[(\[]?(?P<letter>[A-J]|(?<=(?i:option) )[a-j])"
    rf"[)\]]?(?:\s*\([^()\n]*\))?\s+"
    rf"(?i:{_BE}|seems|looks)\s+{_HEDGE}(?:the\s+)?(?:correct|right|best|most (?:likely|appropriate|suitable))"
    rf"(?:\s+(?:{_NOUN}|one|diagnosis)\b|\s*[.,;!\n]|\s*$|\s+{_BECAUSE})"
)
_HAN_APPROVED = re.compile(r"(?<![A-Za-z])(?P<letter>[A-J])[)\]]?\s*(?:选项|项)?是?正确")
# A denial that still holds where the clause ends: "not A but" denies nothing that follows.
_DENIAL = re.compile(
    r"(?:\b(?:not|neither|nor|never|cannot|if|whether|unless)\b|n['’]t\b|[不非没])(?!.*\b(?:but|so|hence|thus)\b)", re.I
)
_ELIMINATED = re.compile(
    r"\b(?:wrong|incorrect|false|not|isn't|eliminated?|excluded?|ruled out|unlikely|impossible|implausible"
    r"|contraindicated|inappropriate)\b",
    re.I,
)
_DISMISSED = re.compile(rf"\W*(?:{_BE}|are|were|seems?|can|could|should|may|does)\b[^,;]*{_ELIMINATED.pattern}", re.I)
_CONTRAST = re.compile(r"\b(?:rather than|instead of|unlike|except|however|without|neither|nor|either)\b", re.I)
_NAMED = rf"(?:(?i:{_NOUN})\s+)?"
# A text or line that is only a letter: "B", "(B)", "Option B."
_ALONE = re.compile(rf"{_NAMED}[(\[]?([A-Ja-j])[)\]]?[.:]?")
# A line that starts with a letter and goes on: "B. aspirin", "(B) because A is wrong", "B - aspirin".
_LABELLED = re.compile(
    rf"{_NAMED}[(\[]?([A-J])(?:[)\]][.:]?|[.:]|(?=,?\s+{_BECAUSE}|\s+[-–—]\s))(?!{_NEXT})\s*(.*)", re.DOTALL
)
# Some releases write the label into the option: "B. aspirin".
_OWN_LABEL = re.compile(r"[(\[]?([A-J])(?:[)\]][.:]?|[.:])\s*(?=\S)")
# An option's text that goes on to another is not that option: "aspirin and heparin". "aspirin and it must be given at
# once" is.
_CONTINUED = re.compile(r"\s*(?:[/+&]|(?:and|or|plus)\b(?!\s+(?:it|this|that|not|we|he|she|they|therefore|so)\b))")
_JOINED = re.compile(r".*(?:[/+&]|\b(?:and|or|plus))\s*$")
# What stands before an option in a sentence that concludes: "Therefore", or "is" and a few words.
_CONCLUDES = re.compile(
    r"\W*(?:therefore|thus|so|hence|consequently|overall|in conclusion|in summary|因此|所以|故|综上)"
    r"|.*(?:\b(?:is|are|was|were|be|equals?)\b|=|[是为])(?:\s+(?!that\b|if\b|when\b)[\w-]+){0,6}\W*$",
    re.I,
)
# A conclusion signed with a letter: "So the time is quarter past eight. (E)".
_SIGNED = re.compile(
    r"(?:^|[.!?,]\s+)(?:therefore|thus|so|hence|consequently)\b(?P<said>[^\n]{0,300}?)"
    r"[(\[](?P<letter>(?-i:[A-J]))[)\]]\s*[.!]?[^\S\n]*$",
    re.I | re.M,
)
_IS_LETTER = re.compile(r"\b(?:is|are|be|was|labell?ed|marked)\s+[(\[][A-J][)\]]")
# "A: No, it is not.": the letter stands for "Answer".
_REPLY = re.compile(r"^[^\S\n]*A:[^\S\n]+", re.M)
_BRACKETED = re.compile(r"[(\[][A-J][)\]]")
_SETS_ASIDE = re.compile(r"\b(?:rul(?:e|es|ing) out|eliminat|exclud|discard|reject|dismiss|compar)", re.I)
_DISMISSED_NEXT = re.compile(
    rf"\s*(?:{_BE}|are|were|seems?|can|could|should|may|does)\b[^,;.\n]*{_ELIMINATED.pattern}", re.I
)
# A condition states nothing: "If the fever is high, then ..." and "if insulin was eliminated would be".
_GIVEN = re.compile(r"\s*(?:if|when)\b[^,.]{1,100},\s+(?:then\b\s*)?(?!.*\b(?:would|could|might)\b)", re.I)
_CONDITION = re.compile(
    r"\b(?:if|when|after)\b[^,;]{1,80}?\b(?:is|are|was|were)\s+\w+(?=\s+(?:would|will|is|are)\b)", re.I
)
_APPROVES = re.compile(
    rf"\W*{_BE}\s+(?:the\s+)?(?:correct|right|(?:most|best) (?:likely|appropriate|next|initial))\b", re.I
)
_ARTICLE = re.compile(r"(?:an?|the)\s+")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n|\Z")
_TAG = re.compile(r"<(/?)(?:final_?)?answer>", re.IGNORECASE)
# Full-width signs have ASCII twins; marks of direction and of zero width go.
_TWINS: dict[int, str | None] = {
    **dict.fromkeys([0xAD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    0x3000: " ",
    0x3002: ". ",
    0x3010: "[",
    0x3011: "]",
}

_REACH = 100  # characters of a clause that are looked at, so that a response that repeats itself takes linear time
_LAST_CUES = 200  # announcements that are looked at, from the end
_LINES = 50  # lines looked at from either end
_SENTENCE = 400  # characters of the last sentence that are looked at
_TAIL = 300  # characters from the end that are looked at first: most responses end with their answer


def check_count(choices: Sequence[str]) -> None:
    """Raise ValueError for more choices than there are labels: an answer is one letter of `LABELS`."""
    if len(choices) > len(LABELS):
        raise ValueError(f"{len(choices)} choices; at most {len(LABELS)} ({LABELS[0]} to {LABELS[-1]}) are graded")


def option_text(spec: AnswerSpec, index: int) -> str | None:
    """Return option `index` as normalised text, without its own label: "B. aspirin" is "aspirin"."""
    return _texts(spec)[index]


def read(text: str, spec: AnswerSpec) -> str | None:
    """Read a bare answer: "B", "(B)", "B. aspirin", an option's own text, or "the answer is B"."""
    text = _clean(text).strip()
    if alone := _ALONE.fullmatch(text):
        return _valid(alone[1], spec)
    return _labelled(text, spec) or _by_text(text, spec) or _committed(text, spec) or None


def find(response: str, spec: AnswerSpec) -> str | None:
    r"""Return the boxed letter, else the last announced, else a line that is an answer, else the last sentence's.

    A box decides, unless it holds no option and a letter is announced after it: "\boxed{45}. The answer is (E)."
    """
    # An empty box is an echo of the prompt ("put the letter in \boxed{}").
    box = last_boxed(response)
    if box is not None and box.strip():
        return read(box, spec) or after_box(response, box, spec)
    response = response[-LOOKED_AT:]
    # Most responses end with their answer: the tail is tried first, for speed.
    tail = _tail(response)
    committed = _committed(_clean(response[tail:]), spec) if tail else None
    if committed is None:
        text = _clean(response)
        committed = _committed(text, spec)
    if committed is not None:
        return committed or None
    return _by_lines(text, spec) or _by_last_sentence(text, spec) or _by_reply(text, spec)


def after_box(response: str, box: str, spec: AnswerSpec) -> str | None:
    """Return the letter announced after the box that holds `box`, which is no option."""
    return _committed(_clean(response[response.rfind(box) + len(box) :][-LOOKED_AT:]), spec) or None


def _tail(response: str) -> int:
    """Return where the sentence of the last "answer" begins if that is near the end, else the tail's first sentence."""
    start = max(0, len(response) - _TAIL)
    said = response.rfind("nswer", start)
    if said < 0:
        return max(response.find("\n", start), response.find(". ", start)) + 1 if start else 0
    return max(response.rfind("\n", 0, said), response.rfind(". ", 0, said)) + 1


def straight(text: str) -> str:
    """Replace full-width signs by ASCII ones and <answer> by "Answer:", and remove invisible marks."""
    if not text.isascii():
        text = text.translate(_TWINS)
    return _TAG.sub(lambda tag: "\n" if tag[1] else "\nAnswer: ", text) if "<" in text else text


def _clean(text: str) -> str:
    """Remove markup, invisible marks and emphasis."""
    return plain(straight(text)).replace("*", "").replace("_", "")


@lru_cache(maxsize=4096)
def _texts(spec: AnswerSpec) -> tuple[str | None, ...]:
    texts = []
    for index, option in enumerate(spec.choices):
        option = _clean(option)
        label = _OWN_LABEL.match(option)
        own = label is not None and label[1] == LABELS[index : index + 1]
        texts.append(free_text.read(option[label.end() :] if label and own else option, spec))
    return tuple(texts)


def _options(spec: AnswerSpec) -> Iterator[tuple[str, str]]:
    """Yield (label, text) of the first ten options, as many as there are labels, that have text."""
    return ((label, text) for label, text in zip(LABELS, _texts(spec), strict=False) if text)


def _valid(letter: str, spec: AnswerSpec) -> str | None:
    """Return the letter in upper case, None if it is beyond the options."""
    letter = letter.upper()
    return letter if letter in LABELS[: len(spec.choices) or None] else None


def _by_text(text: str, spec: AnswerSpec) -> str | None:
    """Return the label of the one option whose text `text` is."""
    wanted = free_text.read(text, spec) if spec.choices else None
    matches = [label for label, option in _options(spec) if option == wanted]
    return matches[0] if len(matches) == 1 else None


def _labelled(line: str, spec: AnswerSpec) -> str | None:
    """Return the letter of "B. aspirin" or "B because ...", unless the rest rejects it ("A. is wrong")."""
    match = _LABELLED.fullmatch(line)
    label = _valid(match[1], spec) if match else None
    if match is None or label is None:
        return None
    return None if _by_text(match[2], spec) != label and _rejects(match) else label


def _rejects(match: re.Match[str]) -> bool:
    """Return whether the text after the letter rejects it."""
    # A reason rejects the other options: "B because A is wrong".
    return re.match(_BECAUSE, match[2]) is None and _ELIMINATED.search(match[2]) is not None


def _committed(text: str, spec: AnswerSpec) -> str | None:
    """Return the last letter of "the answer is B", "so (B)", "B is correct", "the answer is aspirin"; "" for two."""
    cues = [*_CUE.finditer(text)]
    claims = [*_APPROVED.finditer(text)]
    if not text.isascii():
        cues += _HAN_CUE.finditer(text)
        claims += _HAN_APPROVED.finditer(text)
    found = [(cue.start(), cue.end(), "") for cue in cues]
    found += [(claim.start("letter"), claim.end(), claim["letter"]) for claim in claims]
    found += [
        (sign.start("letter"), sign.end(), sign["letter"]) for sign in _SIGNED.finditer(text) if _plain(sign["said"])
    ]
    for start, end, letter in sorted(found, reverse=True)[:_LAST_CUES]:
        label = _valid(letter, spec) if letter else _announced(text, end, spec)
        if label is not None and not _denied(text, start):
            return label
    return None


def _plain(said: str) -> bool:
    """Return whether a conclusion names no further letter, and neither denies nor contrasts."""
    return not any(pattern.search(said) for pattern in (_BRACKETED, _SETS_ASIDE, _ELIMINATED, _DENIAL, _CONTRAST))


def _announced(text: str, start: int, spec: AnswerSpec) -> str | None:
    """Return the letter, or the label of the option's text, at `start`; "" for several letters."""
    if letter := _LETTER.match(text, start):
        if _DISMISSED_NEXT.match(text, letter.end(), letter.end() + _REACH):
            return None
        return _valid(letter["inside"] or letter["bare"], spec)
    return "" if _SEVERAL.match(text, start) else _announced_text(text, start, spec)


def _denied(text: str, start: int) -> bool:
    """Return whether the clause up to `start` negates or supposes what follows it."""
    return _DENIAL.search(re.split(r"[,.;:!?\n]", text[max(0, start - _REACH) : start])[-1]) is not None


def _announced_text(text: str, start: int, spec: AnswerSpec) -> str | None:
    """Return the option whose text opens the statement at `start`, the longest if several do."""
    if not spec.choices:
        return None
    reach = start + max([_REACH, *map(len, spec.choices)])
    end = _SENTENCE_END.search(text, start, reach)
    return _opening(text[start : end.start() if end else reach], spec)


def _opening(statement: str, spec: AnswerSpec) -> str | None:
    """Return the longest option that `statement` opens with, unless the rest joins another to it or dismisses it."""
    said = _ARTICLE.sub("", free_text.read(statement, spec) or "", count=1)
    best: tuple[int, str] | None = None
    for label, option in _options(spec):
        option = _ARTICLE.sub("", option, count=1) if _ARTICLE.match(option) else option
        rest = said[len(option) :]
        whole = said.startswith(option) and re.match(r"$|[\s,;:.!()](?!\d)", rest)
        if (
            whole
            and (len(option) > 1 or option.isdigit())
            and not _CONTINUED.match(rest)
            and not _DISMISSED.match(rest)
        ):
            best = max(best or (0, ""), (len(option), label))
    return best[1] if best else None


def _by_lines(text: str, spec: AnswerSpec) -> str | None:
    """Return the last line that is a letter, else the only option that lines spell out."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = lines if len(lines) <= 2 * _LINES else lines[:_LINES] + lines[-_LINES:]
    for line in reversed(lines):
        if (alone := _ALONE.fullmatch(line)) and (label := _valid(alone[1], spec)):
            return label
    # Lines of this form with different options repeat the list of options.
    spelled = {label for line in lines if (label := _labelled(line, spec) or _by_text(line, spec))}
    return spelled.pop() if len(spelled) == 1 else None


def _by_last_sentence(text: str, spec: AnswerSpec) -> str | None:
    """Return the only option in the last sentence, if the sentence concludes without denial or contrast.

    For example "Therefore, the next step is needle thoracostomy.", or a reply that opens with it: "No, it has not."
    """
    sentence = re.split(r"(?<=[.!?])\s+", text.rstrip()[-_SENTENCE:].rpartition("\n")[2])[-1]
    if (comma := sentence.find(",")) > 0 and (label := _by_text(sentence[:comma], spec)):
        return label
    sentence = _CONDITION.sub("", _GIVEN.sub("", sentence, count=1) if _GIVEN.match(sentence) else sentence)
    if _ELIMINATED.search(sentence) or _DENIAL.search(sentence) or _CONTRAST.search(sentence):
        return None
    if letter := _only_letter(sentence, spec):
        return letter
    said = free_text.read(sentence, spec) or ""
    spans = [(at, at + len(option), label) for label, option in _options(spec) if (at := _place(option, said)) >= 0]
    # An option inside another ("aspirin" in "aspirin and clopidogrel") is not named by it.
    widest = [a for a in spans if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in spans)]
    if len(widest) != 1:
        return None
    start, end, label = widest[0]
    before, after = said[:start], said[end:]
    if _CONTINUED.match(after) or _JOINED.match(before):
        return None
    return label if _CONCLUDES.match(before) or _APPROVES.match(after) else None


def _by_reply(text: str, spec: AnswerSpec) -> str | None:
    """Return the option that follows "A:", short for "Answer:", as in "A: No, it is not." with options yes and no."""
    reply = _REPLY.search(text)
    label = _announced(text, reply.end(), spec) if reply else None
    # "A: yes" is the first line of the list of options.
    return label or None if label != "A" else None


def _only_letter(sentence: str, spec: AnswerSpec) -> str | None:
    """Return the only bracketed letter of a sentence that names it: "the angle is (D) 150°", "labelled (C)"."""
    letters = _BRACKETED.findall(sentence)
    return _valid(letters[0][1], spec) if len(letters) == 1 and _IS_LETTER.search(sentence) else None


def _place(option: str, said: str) -> int:
    """Return where `option` stands in `said` as whole words or a whole number, else -1; -1 for a single letter."""
    at = said.find(option) if len(option) > 1 or option.isdigit() else -1
    while at >= 0:
        before, after = said[at - 1 : at] if at else "", said[at + len(option) :]
        if not (before.isalnum() or before in ("-", ".")) and not re.match(r"\w|[%°]|[.,]\d", after):
            return at
        at = said.find(option, at + 1)
    return -1


def _grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
    """Grade right if it is the gold's label or, where options are themselves letters, the text of the gold's option."""
    labels = read_golds(golds, spec, read)
    if answer is None:
        return UNPARSED
    texts = {option_text(spec, LABELS.index(label)) for label in labels} if spec.choices else set()
    return verdict(answer.text in labels or free_text.read(answer.text, spec) in texts, answer.text, labels)


_KEYED = keyed(find, read)
KIND = Kind(_KEYED.parse, _KEYED.same, _grade)
