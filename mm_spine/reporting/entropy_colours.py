"""Entropy as shade: one hue, so that people who do not see red and green apart lose nothing, and never colour alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.style import Style
from rich.text import Text

FULL = math.log(8)
"""Nats at which a shade is full: as uncertain as eight equally likely tokens."""

MARKS = ((0.0, "certain"), *((math.log(n), f"{n} choices") for n in (2, 4, 8)))
"""What a legend shows: entropies in nats, and how many equally likely tokens would be as uncertain."""

_LOW, _HIGH = (23, 37, 84), (59, 130, 246)  # from navy to blue, white text readable on both
_BARELY = 0.02  # shades below it leave a token as it is


class Token(NamedTuple):
    """A token as people see it, or the few that make one character together: then `entropy` is their largest.

    `entropy` is in nats, of the distribution that it was drawn from; `fork`: among those that the method trains.
    """

    text: str
    entropy: float
    fork: bool = False


def shade(entropy: float) -> float:
    """Nats -> [0, 1], linear up to `FULL`; what is not a number has none."""
    return min(max(entropy / FULL, 0.0), 1.0) if math.isfinite(entropy) else 0.0


def choices(entropy: float) -> float:
    """How many equally likely tokens would have this entropy (nats): its exponential."""
    return math.exp(entropy)


def coloured(tokens: Sequence[Token], plain: bool = False) -> Text:
    """The tokens for a terminal, forks bold and underlined; `plain`: no styles, forks stand in «»."""
    if plain:
        return Text("".join(f"«{token.text}»" if token.fork else token.text for token in tokens))
    return Text.assemble(*((token.text, _style(token)) for token in tokens))


def legend(plain: bool = False) -> Text:
    """One line that says what `coloured` means."""
    if plain:
        return Text("«forking tokens»: the uncertain ones, where the response is decided")
    forks = Text("forking tokens", Style(bold=True, underline=True))
    marks = [part for nats, words in MARKS for part in ((f" {nats:.2f} ", _background(shade(nats))), f" {words}  ")]
    return Text.assemble("entropy in nats: ", *marks, forks)


def _style(token: Token) -> Style:
    return _background(shade(token.entropy)) + Style(bold=token.fork or None, underline=token.fork or None)


def _background(level: float) -> Style:
    if level < _BARELY:
        return Style()
    red, green, blue = (round(low + level * (high - low)) for low, high in zip(_LOW, _HIGH, strict=True))
    return Style(color="rgb(255,255,255)", bgcolor=f"rgb({red},{green},{blue})")
