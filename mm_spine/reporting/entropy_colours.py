"""Show the entropy of tokens as shades of one hue.

One hue can be read by people who do not tell red from green. Forking tokens are also bold and underlined, so that
nothing is said by colour only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.style import Style
from rich.text import Text

FULL = math.log(8)
"""Entropy in nats of the strongest shade: that of eight equally likely tokens."""

MARKS = ((0.0, "certain"), *((math.log(n), f"{n} choices") for n in (2, 4, 8)))
"""The legend: entropies in nats, and the number of equally likely tokens that have this entropy."""

# Red, green and blue of the weakest and the strongest shade: white text can be read on both.
_NAVY, _BLUE = (23, 37, 84), (59, 130, 246)
# A weaker shade is not drawn.
_WEAKEST = 0.02


class Token(NamedTuple):
    """A token for people to read, or the few tokens that make one character together.

    Attributes:
        entropy: of the distribution that the token was drawn from, in nats; the largest of several tokens.
        fork: the token is a forking token, which the method trains.
    """

    text: str
    entropy: float
    fork: bool = False


def shade(entropy: float) -> float:
    """Return the strength of a shade in [0, 1] for an entropy in nats, linear up to `FULL`; 0 for NaN and infinity."""
    return min(max(entropy / FULL, 0.0), 1.0) if math.isfinite(entropy) else 0.0


def choices(entropy: float) -> float:
    """Return the number of equally likely tokens that have this entropy (nats): its exponential."""
    return math.exp(entropy)


def coloured(tokens: Sequence[Token], plain: bool = False) -> Text:
    """Return the tokens as text for a terminal; with `plain`, without styles and with forking tokens in «»."""
    if plain:
        return Text("".join(f"«{token.text}»" if token.fork else token.text for token in tokens))
    return Text.assemble(*((token.text, _style(token)) for token in tokens))


def legend(plain: bool = False) -> Text:
    """Return one line that explains the output of `coloured`."""
    if plain:
        return Text("«forking tokens»: those of high entropy, which the method trains")
    forks = Text("forking tokens", Style(bold=True, underline=True))
    marks = [part for nats, words in MARKS for part in ((f" {nats:.2f} ", _background(shade(nats))), f" {words}  ")]
    return Text.assemble("entropy in nats: ", *marks, forks)


def _style(token: Token) -> Style:
    return _background(shade(token.entropy)) + Style(bold=token.fork or None, underline=token.fork or None)


def _background(level: float) -> Style:
    if level < _WEAKEST:
        return Style()
    red, green, blue = (round(low + level * (high - low)) for low, high in zip(_NAVY, _BLUE, strict=True))
    return Style(color="rgb(255,255,255)", bgcolor=f"rgb({red},{green},{blue})")
