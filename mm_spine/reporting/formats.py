"""Write numbers and long texts as the pages and the comparison show them."""

from __future__ import annotations

from mm_spine.intervals import Interval
from mm_spine.reporting.saved_run import number

NONE = "–"
"""Stands where there is no value."""

Pair = tuple[float | None, float | None]
"""A share before and after adapting; None without gold answers."""


def percent(share: float) -> str:
    """Format a share in [0, 1] in percent with one decimal."""
    return f"{100 * share:.1f}\u00a0%"


def signed(difference: float) -> str:
    """Format a difference of shares in percentage points, with its sign and one decimal."""
    # Adding 0.0 turns -0.0 into 0.0, so that a difference that rounds to zero has no minus.
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def signed_bounds(difference: Interval) -> str:
    """Format the interval of a difference in percentage points: "[-1.0, +2.5]"; "" without an interval."""
    if difference.low is None or difference.high is None:
        return ""
    return f"[{signed(difference.low)}, {signed(difference.high)}]"


def percent_bounds(share: Interval | None) -> str:
    """Format the interval of a share in percent: "[40.1, 52.3]"; "" without an interval."""
    if share is None or share.low is None or share.high is None:
        return ""
    return f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"


def points_only(difference: Interval) -> str:
    """Format a difference in percentage points and its interval without their unit: "+3.1 [+1.0, +5.2]"."""
    return f"{signed(difference.value)} {signed_bounds(difference)}".rstrip()


def points(difference: Interval) -> str:
    """Format a difference with its unit and interval: "+3.1 points [+1.0, +5.2]"."""
    return f"{signed(difference.value)} points {signed_bounds(difference)}".rstrip()


def pair(shares: Pair) -> str:
    """Format a share before and after in percent: "41.0 → 72.7"."""
    return " → ".join(NONE if share is None else f"{100 * share:.1f}" for share in shares)


def gain(difference: Interval | None) -> str:
    """Format a difference in percentage points; its interval stands on a second line."""
    if difference is None:
        return NONE
    return f"{signed(difference.value)}\n{signed_bounds(difference)}".rstrip()


def count(value: object) -> str:
    """Format a number without decimals, with a comma before every three digits."""
    known = number(value)
    return NONE if known is None else f"{known:,.0f}"


def compact(value: object) -> str:
    """Format a number for a table: whole ones with commas, others with four significant digits."""
    known = number(value)
    if known is None:
        return NONE
    return f"{known:,.0f}" if known == int(known) and abs(known) < 1e9 else f"{known:.4g}"


def duration(seconds: float | None) -> str:
    """Format a duration by its size: "2 h 05 min", "3 min 20 s" or "41.3 s"."""
    if seconds is None:
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def shortened(text: str, head: int = 1600, tail: int = 600) -> str:
    """Keep the first `head` and the last `tail` characters of a long text, and say how many are left out."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]}\n[... {len(text) - head - tail:,} characters left out ...]\n{text[-tail:]}"
