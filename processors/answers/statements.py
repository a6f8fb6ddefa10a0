"""Find out what a response does not commit to: refusals, unfinished texts, small talk, a box that never closes."""

from __future__ import annotations

import re

_IMAGE = r"(?:image|picture|photo(?:graph)?|figure|scan|diagram|chart|graph|map|text|passage|question|context)"
_KNOWN = (
    r"(?:tell|say|answer|determine|know|see|provide|identify|help|assist|make (?:it )?out|judge|assess|confirm|view"
    r"|discern|decide|read|infer|conclude|access|solve|work (?:it|this) out)"
)
_REFUSAL = re.compile(
    rf"\b(?:i|we|one)(?:['’]m| am| are)? (?:really )?"
    rf"(?:cannot|can(?:['’]t| not)|could(?:n['’]t| not)|(?:am |are )?(?:not able|unable) to"
    rf"|not able to|unable to) (?:\w+ ){{0,2}}{_KNOWN}\b"
    r"|\b(?:i|we) (?:really )?(?:do not|don['’]t) (?:know|have (?:enough|sufficient|any) information|have access)\b"
    r"|\bi(?:['’]m| am) (?:not (?:sure|certain)|unsure|uncertain)\b"
    r"|\b(?:i['’]m|i am|we['’]re|we are)? ?sorry\b[^.]{0,40}\b(?:but|cannot|can['’]t|unable|not)\b|\bi apologi[sz]e\b"
    r"|\b(?:can(?:not|['’]t| not)|could(?:n['’]t| not)) be (?:\w+ )?"
    r"(?:determined|answered|known|said|told|identified|assessed|inferred|seen|decided|judged|solved|established|ascertained)\b"
    r"|\b(?:impossible|not possible|unable|no way|not able) (?:for me )?to (?:\w+ )?"
    rf"{_KNOWN}\b"
    r"|\b(?:not enough|insufficient|inadequate) (?:information|data|context|detail|evidence)\b"
    rf"|\b{_IMAGE} (?:does not|doesn['’]t|do not|did not|didn['’]t|cannot|can['’]t|fails to) (?:\w+ )?"
    r"(?:provide|contain|give|show|include|specify|mention|say|tell|indicate|state|reveal|allow)\b[^.]{0,60}"
    r"\b(?:information|details?|data|context|evidence|answer|enough|sufficient|necessary|needed|whether|how|what|which|who|when|where|why)\b"
    r"|\bno (?:information|idea|answer)\b(?! (?:desk|centre|center|board))"
    r"|无法(?:确定|判断|回答|得知|看出|辨认|识别|知道)|不(?:能确定|知道|确定|清楚)|没有足够|信息不足|抱歉|对不起",
    re.IGNORECASE,
)
_REFUSAL_WORDS = re.compile(
    r"\W*(?:unknown|unsure|unclear|undetermined|indeterminate|dunno|idk|sorry|n/?a|none given|not sure|not known"
    r"|not (?:visible|clear|specified|mentioned|stated|given|provided)(?: in the \w+)?)\W*",
    re.IGNORECASE,
)

# A text that ends in one of these breaks off.
_FUNCTION_WORDS = (
    "a an the of is are was were be been which that who whom whose and or nor but to with in on at by for from into"
    " onto because since as if then so therefore thus hence we its their our than between both either neither equals"
    " about approximately where when while next namely has have"
)
_UNFINISHED = re.compile(
    rf"(?:(?:^|[\s,(])(?:{'|'.join(_FUNCTION_WORDS.split())})|[=+*/×÷<(\[,&:]|\\(?:frac|sqrt|cdot|times|text)\{{?)"
    r"\s*\Z"
)
_SMALL_TALK = re.compile(
    r"(?:(?<=[.!?*\n}。])|(?<=\.\))|(?<=\S)\s+(?=(?-i:[A-Z])))\s*"
    r"(?:(?:i (?:really )?hope|hope(?:fully)?) (?:this|that|it)\b[^.!?\n]{0,60}"
    r"|(?:please )?(?:feel free|don['’]t hesitate) to\b[^.!?\n]{0,80}"
    r"|(?:please )?let me know\b[^.!?\n]{0,100}"
    r"|(?:is there|do you have)\b[^.!?\n]{0,30}\b(?:else|questions?)\b[^.!?\n]{0,60}"
    r"|if (?:you|there)\b[^.!?\n]{0,60}\b(?:questions?|help|clarification|else)\b[^.!?\n]{0,80}"
    r"|have a (?:great|nice|good|wonderful)\b[^.!?\n]{0,30}|thank(?:s| you)\b[^.!?\n]{0,40}"
    r"|you(?:['’]re| are) welcome|happy to help[^.!?\n]{0,40}|good luck[^.!?\n]{0,30}"
    r"|希望[^。！!\n]{0,20}帮助[^。！!\n]{0,10}|如有[^。！!\n]{0,30})[.!?。！\s*]*\Z",
    re.IGNORECASE,
)
# What all small talk at the end holds: looked for first, for speed.
_TALKS = re.compile(
    r"[Hh]ope|[Ff]eel free|hesitate|me know|quest|clari|else|[Hh]ave a|[Tt]hank|welcome|[Hh]appy|luck|希望|如有|help"
)
_OPENING_TALK = re.compile(
    r"\A\s*(?:sure(?: thing)?|certainly|of course|absolutely|great question|good question|okay|ok|hello|hi|thanks"
    r"|thank you|let me (?:see|think|look))(?:[!.:]|,(?=\s*(?:the|it|this|here|that)\b))\s*"
    r"(?:here(?:['’]s| is) (?:the|my|your) answer[.:!]\s*)?(?=\S)",
    re.IGNORECASE,
)
_REACH = 400  # characters at either end in which small talk is looked for
_LOOKED_AT = 2000  # characters of a text in which a refusal is looked for


def refuses(text: str, in_a_word: bool = True) -> bool:
    """Return whether `text`, one sentence or a few, says that there is no answer; `in_a_word`: also "unknown"."""
    text = text[:_LOOKED_AT]
    return _REFUSAL.search(text) is not None or (in_a_word and _REFUSAL_WORDS.fullmatch(text) is not None)


def unfinished(text: str) -> bool:
    """Return whether `text` breaks off: it ends in "which", "the", "=" or the like."""
    tail = text[-60:].rstrip(" \n*$")
    return len(text.split()) > 1 and _UNFINISHED.search(tail) is not None


def without_small_talk(text: str) -> str:
    """Remove "Sure!" at the beginning and "I hope this helps!" at the end, unless nothing else is there."""
    start = text[:_REACH]
    if opening := _OPENING_TALK.match(start):
        text = text[opening.end() :]
    # Several such sentences may follow each other.
    for _ in range(3):
        tail = text[-_REACH:]
        talk = _SMALL_TALK.search(tail) if _TALKS.search(tail) else None
        if talk is None or not (rest := text[: len(text) - len(tail) + talk.start()]).strip():
            return text
        text = rest
    return text
