"""Text in figures: numbers, percentages, counts of objects, and shortened names."""

from __future__ import annotations

__all__ = ["format_count", "format_minus", "format_percent", "truncate_middle"]


def format_minus(number: str) -> str:
    """Return a formatted number with a true minus sign, as on tick labels."""
    return number.replace("-", "\N{MINUS SIGN}")


def format_percent(share: float) -> str:
    """Return a share in whole percent, or "<1%" for small positive shares."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def format_count(noun: str, n: int) -> str:
    """Return a count with its noun, such as "1 gene" or "3,000 genes"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def truncate_middle(name: str, limit: int) -> str:
    """Return a name of at most `limit` characters; long names lose their middle, which differs least between names."""
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return f"{name[: limit - 1 - tail]}…{name[-tail:]}"
