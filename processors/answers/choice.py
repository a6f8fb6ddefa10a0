"""Letters of multiple choice (MMMU, GPQA, MedQA, ScienceQA and others).

A letter counts only if the response commits to it, never if it is merely mentioned, eliminated or guessed. Graders that
draw a letter at random when they find none (MMMU, lmms-eval) would add votes that nobody cast. Where options are
themselves letters, a letter is a label, in votes and in grades. Options with equal texts are one answer.
"""

from __future__ import annotations

import re

from mm_spine.processors.answers import text as free_text
from mm_spine.processors.answers.extraction import LOOKED_AT, last_boxed
from mm_spine.processors.answers.kind import keyed
from mm_spine.processors.answers.labels import BRACKETED, ELIMINATED, by_text, clean, options, valid
from mm_spine.processors.answers.labels import LABELS as LABELS
from mm_spine.processors.answers.labels import check_count as check_count
from mm_spine.processors.answers.labels import label_of as label_of
from mm_spine.processors.answers.labels import option_text as option_text
from mm_spine.processors.answers.labels import straight as straight
from mm_spine.processors.answers.labels import without_echo as without_echo
from mm_spine.processors.answers.labels import without_own_texts as without_own_texts
from mm_spine.types import AnswerSpec

_BECAUSE = r"(?:because|since|as|given|due)\b"
# A second letter behind the first: "B and C", "A/B".
_NEXT = r"\s*(?:,|/|&|\band\b|\bor\b)\s*(?:and |or )?\(?[A-Z]\)?\s*(?:[.,;)\n]|$)"
# A bare "a" is the article, and so is "A" before a word that does not open a reason: neither is an option.
_LETTER = re.compile(
    r"(?:[(\[](?P<inside>[A-Za-z])[)\]]|(?P<bare>[A-Zb-z])"
    rf"(?=\s*(?:[.,;:!)(\n\"'”’|<项选](?!s\b)|$)|,?\s+{_BECAUSE}|\s+[-–—]\s))(?!{_NEXT})"
)
_SEVERAL = re.compile(rf"\(?[A-Z]\)?{_NEXT}")
_NOUN = r"(?:answer|ans|option|choice|letter)"
_BE = r"(?:is|was|(?:should|would|must|will|has to) be)"
_HEDGE = r"(?:(?:clearly|therefore|thus|likely|most likely|probably|definitely|simply|indeed)[,\s]+)?"
# What announces a letter: "The correct answer is option", "| Answer |", "I would go with", "So the". Not "is not".
_CUE = re.compile(
    rf"\b(?:{_NOUN}\b(?:\s+to\b[^.\n]{{0,80}}?)?\s*(?:{_BE}\b|[:=|>]|[-–—](?=\s))"
    rf"|is\s+(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:option|choice|letter)\b"
    rf"|choose|chose|pick|select|go with|it(?:'s|\u2019s| is| must be)|(?:so|therefore|thus|hence)\b,?)"
    rf"(?!\s+not\b)[\s:\"'“‘]*+"
    rf"{_HEDGE}(?:the\s+)?(?:(?:correct|best|right|final)\s+)?(?:{_NOUN}\b\s*(?:{_BE}\b)?[\s:]*)?",
    re.IGNORECASE,
)
# The same in Chinese (GeoQA+, SLAKE): "答案是", "故选：", but neither "不选" nor "选项".
_HAN_CUE = re.compile(
    r"(?:(?:答案|选项|正确的)\s*(?:应该|应当|应)?\s*[是为:]|(?<!不)(?<!不应)(?<!正确)选(?!项))[择\s:]*+(?:选项|选)?\s*"
)
# "B is correct", "Option (B) is the most likely diagnosis", "so B is the best choice".
_APPROVED = re.compile(
    rf"(?:^|[.;:,\n][^\S\n]*|\b(?i:{_NOUN}|that|so|thus|therefore|hence)\s+)"
    rf"[(\[]?(?P<letter>[A-Z]|(?<=(?i:option) )[a-z])"
    rf"[)\]]?(?:\s*\([^()\n]*\))?\s+"
    rf"(?i:{_BE}|seems|looks)\s+{_HEDGE}(?:the\s+)?(?:correct|right|best|most (?:likely|appropriate|suitable))"
    rf"(?:\s+(?:{_NOUN}|one|diagnosis)\b|\s*[.,;!\n]|\s*$|\s+{_BECAUSE})"
)
_HAN_APPROVED = re.compile(r"(?<![A-Za-z])(?P<letter>[A-Z])[)\]]?\s*(?:选项|项)?是?正确")
# A denial that still holds where the clause ends: "not A but" denies nothing that follows.
_DENIAL = re.compile(
    r"(?:\b(?:not|neither|nor|never|cannot|if|whether|unless)\b|n['’]t\b|[不非没])(?!.*\b(?:but|so|hence|thus)\b)", re.I
)
_DISMISSED = re.compile(rf"\W*(?:{_BE}|are|were|seems?|can|could|should|may|does)\b[^,;]*{ELIMINATED.pattern}", re.I)
_CONTRAST = re.compile(r"\b(?:rather than|instead of|unlike|except|however|without|neither|nor|either)\b", re.I)
_NAMED = rf"(?:(?i:{_NOUN})\s+)?"
# A text or line that is only a letter: "B", "(B)", "Option B."
_ALONE = re.compile(rf"{_NAMED}[(\[]?([A-Za-z])[)\]]?[.:]?")
# A line that starts with a letter and goes on: "B. aspirin", "(B) because A is wrong", "B - aspirin".
_LABELLED = re.compile(
    rf"{_NAMED}[(\[]?([A-Z])(?:[)\]][.:]?|[.:]|(?=,?\s+{_BECAUSE}|\s+[-–—]\s))(?!{_NEXT})\s*(.*)", re.DOTALL
)
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
    r"[(\[](?P<letter>(?-i:[A-Z]))[)\]]\s*[.!]?[^\S\n]*$",
    re.I | re.M,
)
_IS_LETTER = re.compile(r"(?:\b(?:is|are|be|was|labell?ed|marked)\s+|[是为]\s*)[(\[][A-Z][)\]]")
# A letter before a text; no space stands between it and Chinese.
_LETTER_AND_TEXT = re.compile(r"[(\[]?([A-Z])[)\]]?[.:、]?(?:\s+|(?=[^\x00-\x7f]))")
# A sentence that only supposes: "Otherwise, the answer is B.", "If it were a cyst, the answer would be A."
_ALTERNATIVE = re.compile(r"\b(?:otherwise|if not)\b", re.I)
_SUPPOSED = re.compile(r"\W*(?:if|when|unless|suppose|assuming|had|were)\b", re.I)
_SUBJUNCTIVE = re.compile(r"\b(?:if\b.*\b(?:were|had)\b|suppose|assuming|assume|imagine)\b", re.I)
# "none of the options A, B, C, D is correct": the letter ends a list.
_LIST_BEFORE = re.compile(r"(?:\b[A-Z][)\]]?\s*(?:,|/|&|,?\s*\b(?:and|or|nor)\b)\s*(?:and |or )?[(\[]?)\Z")
_NONE_OF = re.compile(r"\b(?:none|neither|not one|no one)\b", re.I)
# What makes a number part of a formula: 2√5, 3·2, x^2, 2/3.
_IN_FORMULA = re.compile(
    r"[\\√π^²³]|\s*[√π^²³×·*+/=<>]|\s*\\(?:sqrt|pi|times|cdot|frac)|\s*(?:sqrt|pi)\b|\s+[-–−:]\s*\d|!|[-–−:]\d"
)
_FORMULA_BEFORE = re.compile(r"(?:[√π^_*/×·{(−+]|\\[a-z]+|[0-9a-z]\s*[*/×·+:^−-]\s*)\Z")
# A letter in brackets that stands behind everything else.
_LAST_LETTER = re.compile(r"(?:\A|[.!?。:\n])\s*[(\[]([A-Z])[)\]]\s*[.!]?\s*\Z")
_POLAR = frozenset(("yes", "no", "true", "false", "是", "否", "对", "错"))
# "A: No, it is not.": the letter stands for "Answer".
_REPLY = re.compile(r"^[^\S\n]*A:[^\S\n]+", re.M)
_SETS_ASIDE = re.compile(r"\b(?:rul(?:e|es|ing) out|eliminat|exclud|discard|reject|dismiss|compar)", re.I)
_DISMISSED_NEXT = re.compile(
    rf"\s*(?:{_BE}|are|were|seems?|can|could|should|may|does)\b[^,;.\n]*{ELIMINATED.pattern}", re.I
)
# A condition states nothing: "If the fever is high, then ..." and "if insulin was eliminated would be".
_GIVEN = re.compile(r"\s*(?:if|when)\b[^,.]{1,100},\s+(?:then\b\s*)?(?!.*\b(?:would|could|might)\b)", re.I)
_CONDITION = re.compile(
    r"\b(?:if|when|after)\b[^,;]{1,80}?\b(?:is|are|was|were)\s+\w+(?=\s+(?:would|will|is|are)\b)", re.I
)
_APPROVES = re.compile(
    rf"\W*{_BE}\s+(?:the\s+)?(?:correct|right|(?:most|best) (?:likely|appropriate|next|initial))\b", re.I
)
_ARTICLE = re.compile(r"\A(?:an?|the)\s+")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n|\Z")
_SENTENCE_START = re.compile(r"(?<=[.!?])\s+|\n+")
_REACH = 100  # characters of a clause that are looked at, so that a response that repeats itself takes linear time
_LAST_CUES = 200  # announcements that are looked at, from the end
_LINES = 50  # lines looked at from either end
_SENTENCE = 400  # characters of the last sentence that are looked at
_TAIL = 300  # characters from the end that are looked at first: most responses end with their answer


def read(text: str, spec: AnswerSpec) -> str | None:
    """Read a bare answer: "B", "(B)", "B. aspirin", an option's own text, or "the answer is B"."""
    text = clean(text).strip()
    if (alone := _ALONE.fullmatch(text)) and (label := valid(alone[1], spec)):
        return label
    return _labelled(text, spec) or by_text(text, spec) or _committed(text, spec) or None


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
    committed = _committed(clean(response[tail:]), spec) if tail else None
    if committed is None:
        text = without_echo(clean(response), spec)
        committed = _committed(text, spec)
    if committed is not None:
        return committed or None
    found = _by_lines(text, spec) or _by_last_sentence(text, spec) or _by_reply(text, spec)
    return found or _by_last_letter(text, spec) or _by_first_sentence(text, spec)


def after_box(response: str, box: str, spec: AnswerSpec) -> str | None:
    """Return the letter announced after the box that holds `box`, which is no option."""
    return _committed(clean(response[response.rfind(box) + len(box) :][-LOOKED_AT:]), spec) or None


def _tail(response: str) -> int:
    """Return where the sentence of the last "answer" begins if that is near the end, else the tail's first sentence."""
    start = max(0, len(response) - _TAIL)
    said = response.rfind("nswer", start)
    if said < 0:
        return max(response.find("\n", start), response.find(". ", start)) + 1 if start else 0
    return max(response.rfind("\n", 0, said), response.rfind(". ", 0, said)) + 1


def names_several(text: str) -> bool:
    """Return whether the last sentence names several letters in brackets, as in "choose from (A) 2, (B) 20"."""
    sentence = _SENTENCE_START.split(text.rstrip()[-_SENTENCE:])[-1]
    return len(set(BRACKETED.findall(sentence))) > 1


def _labelled(line: str, spec: AnswerSpec) -> str | None:
    """Return the letter of "B. aspirin" or "B because ...", unless the rest rejects it ("A. is wrong")."""
    letter = _LETTER_AND_TEXT.match(line)
    label = valid(letter[1], spec) if letter else None
    # "D item 3 of the list": the text is that of the letter, whatever it says.
    if letter and label and by_text(line[letter.end() :], spec) == label:
        return label
    match = _LABELLED.fullmatch(line)
    label = valid(match[1], spec) if match else None
    if match is None or label is None:
        return None
    # "A: No" is short for "Answer: No" where another option says so.
    if label == "A" and _REPLY.match(line) and (reply := _replied(match[2], spec)):
        return reply
    return None if by_text(match[2], spec) != label and _rejects(match) else label


def _rejects(match: re.Match[str]) -> bool:
    """Return whether the text after the letter rejects it."""
    # A reason rejects the other options: "B because A is wrong".
    return re.match(_BECAUSE, match[2]) is None and ELIMINATED.search(match[2]) is not None


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
        label = valid(letter, spec) if letter else _announced(text, end, spec)
        if label is None or _denied(text, start) or _supposed(text, start):
            continue
        if letter and _LIST_BEFORE.search(text, max(0, start - 20), start):
            if _NONE_OF.search(text, max(0, start - _REACH), start):
                continue
            return ""
        return label
    return None


def _supposed(text: str, start: int) -> bool:
    """Return whether the sentence up to `start` is an alternative to another, or contrary to fact.

    "If x is larger, the answer is A. Otherwise, it is B." commits to neither.
    """
    sentence = _SENTENCE_START.split(text[max(0, start - 3 * _REACH) : start])[-1]
    if _ALTERNATIVE.search(sentence) or _SUBJUNCTIVE.search(sentence):
        return True
    return _SUPPOSED.match(sentence) is not None and _ALTERNATIVE.search(text, start, start + 6 * _REACH) is not None


def _plain(said: str) -> bool:
    """Return whether a conclusion names no further letter, and neither denies nor contrasts."""
    return not any(pattern.search(said) for pattern in (BRACKETED, _SETS_ASIDE, ELIMINATED, _DENIAL, _CONTRAST))


def _announced(text: str, start: int, spec: AnswerSpec) -> str | None:
    """Return the letter, or the label of the option's text, at `start`; "" for several letters."""
    if letter := _LETTER.match(text, start):
        if _DISMISSED_NEXT.match(text, letter.end(), letter.end() + _REACH):
            return None
        label = valid(letter["inside"] or letter["bare"], spec)
        return None if label and _lists_options(text, letter, label, spec) else label
    if _SEVERAL.match(text, start):
        return ""
    return _announced_text(text, start, spec) or _letter_and_text(text, start, spec)


def _lists_options(text: str, letter: re.Match[str], label: str, spec: AnswerSpec) -> bool:
    """Return whether the letter opens the list of options: "choose from (A) 1, (B) 2"."""
    option = option_text(spec, LABELS.index(label)) if spec.choices else None
    following = LABELS[LABELS.index(label) + 1 :][:1]
    if not option or not following:
        return False
    rest = text[letter.end() : letter.end() + len(option) + 20].lstrip(" .:)").casefold()
    behind = rest[len(option) :]
    return (
        rest.startswith(option) and re.match(rf"[\s,;.]*(?:or\s+)?[(\[]?{following}[)\].:]", behind, re.I) is not None
    )


def _letter_and_text(text: str, start: int, spec: AnswerSpec) -> str | None:
    """Return the letter before the text of its own option: "D 24.3 kN"."""
    letter = _LETTER_AND_TEXT.match(text, start)
    label = valid(letter[1], spec) if letter else None
    if letter is None or label is None or not spec.choices:
        return None
    return label if _announced_text(text, letter.end(), spec) == label else None


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
    said = _ARTICLE.sub("", free_text.normal(statement) or "")
    best: tuple[int, str] | None = None
    for label, option in options(spec):
        option = _ARTICLE.sub("", option)
        rest = said[len(option) :]
        whole = said.startswith(option) and re.match(r"$|[\s,;:.!()](?!\d)", rest) and not _IN_FORMULA.match(rest)
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
        if (alone := _ALONE.fullmatch(line)) and (label := valid(alone[1], spec)):
            return label
    # Lines of this form with different options repeat the list of options.
    spelled = {label for line in lines if (label := _labelled(line, spec) or by_text(line, spec))}
    return spelled.pop() if len(spelled) == 1 else None


def _by_last_sentence(text: str, spec: AnswerSpec) -> str | None:
    """Return the only option in the last sentence, if the sentence concludes without denial or contrast.

    For example "Therefore, the next step is needle thoracostomy.", or a reply that opens with it: "No, it has not."
    """
    sentence = re.split(r"(?<=[.!?])\s+", text.rstrip()[-_SENTENCE:].rpartition("\n")[2])[-1]
    opening, comma, _ = sentence.partition(",")
    if comma and (free_text.normal(opening) in _POLAR or len(opening) > 1) and (label := by_text(opening, spec)):
        return label
    sentence = _CONDITION.sub("", _GIVEN.sub("", sentence, count=1) if _GIVEN.match(sentence) else sentence)
    bare = without_own_texts(sentence, spec)
    if any(pattern.search(bare) for pattern in (ELIMINATED, _DENIAL, _CONTRAST, _ALTERNATIVE, _SUBJUNCTIVE)):
        return None
    if letter := _only_letter(sentence, spec):
        return letter
    said = free_text.normal(sentence) or ""
    spans = [(at, at + len(option), label) for label, option in options(spec) if (at := _place(option, said)) >= 0]
    # An option inside another ("aspirin" in "aspirin and clopidogrel") is not named by it.
    widest = [a for a in spans if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in spans)]
    if len(widest) != 1:
        return None
    start, end, label = widest[0]
    before, after = said[:start], said[end:]
    if _CONTINUED.match(after) or _JOINED.match(before):
        return None
    return label if _CONCLUDES.match(before) or _APPROVES.match(after) else None


def _by_last_letter(text: str, spec: AnswerSpec) -> str | None:
    """Return the letter in brackets behind the last sentence: "The green curve is a logarithm. (D)"."""
    letter = _LAST_LETTER.search(text[-_SENTENCE:])
    if letter is None:
        return None
    said = _SENTENCE_START.split(text[-_SENTENCE:][: letter.start() + 1])[-1]
    unsure = any(pattern.search(said) for pattern in (BRACKETED, _SETS_ASIDE, _CONTRAST, _ALTERNATIVE)) or "?" in said
    return None if unsure else valid(letter[1], spec)


def _by_first_sentence(text: str, spec: AnswerSpec) -> str | None:
    """Return the option that the response states first and then explains: "No, X is not below. It is on the wall."."""
    first = _SENTENCE_START.split(text.strip()[:_SENTENCE], maxsplit=1)[0]
    opening, comma, _ = first.partition(",")
    if comma and free_text.normal(opening) in _POLAR and not _ALTERNATIVE.search(text):
        return by_text(opening, spec)
    return None if _ALONE.fullmatch(first) else by_text(first, spec)


def _by_reply(text: str, spec: AnswerSpec) -> str | None:
    """Return the option that follows "A:", short for "Answer:", as in "A: No, it is not." with options yes and no."""
    reply = _REPLY.search(text)
    return _replied(text[reply.end() :], spec) if reply else None


def _replied(said: str, spec: AnswerSpec) -> str | None:
    """Return the option that a reply behind "A:" opens with; None for option A, whose own label that is."""
    label = _announced(said, 0, spec) if spec.choices else None
    return label or None if label != "A" else None


def _only_letter(sentence: str, spec: AnswerSpec) -> str | None:
    """Return the only bracketed letter of a sentence that names it: "the angle is (D) 150°", "labelled (C)"."""
    letters = BRACKETED.findall(sentence)
    return valid(letters[0][1], spec) if len(letters) == 1 and _IS_LETTER.search(sentence) else None


def _place(option: str, said: str) -> int:
    """Return where `option` stands in `said` as whole words or a whole number, else -1; -1 for a single letter."""
    at = said.find(option) if len(option) > 1 or option.isdigit() else -1
    while at >= 0:
        before, after = said[at - 1 : at] if at else "", said[at + len(option) :]
        formula = _IN_FORMULA.match(after) or _FORMULA_BEFORE.search(said, max(0, at - 12), at)
        if not (before.isalnum() or before in ("-", ".")) and not re.match(r"\w|[%°]|[.,]\d", after) and not formula:
            return at
        at = said.find(option, at + 1)
    return -1


KIND = keyed(find, read)
