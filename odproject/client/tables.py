"""Tables on a terminal."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, its cells below those of the rows before; all have as many."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def plain_number(value: float) -> str:
    """All digits before the point, and at most two behind it: 1234567.75, 26."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
