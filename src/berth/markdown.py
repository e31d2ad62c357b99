"""Tables in Markdown, with columns that line up in a terminal too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; numbers are set to the right. It ends with a newline."""
    cells = [[_escaped(cell) for cell in row] for row in rows]
    widths = [max(3, len(name), *(len(row[place]) for row in cells)) for place, name in enumerate(header)]
    right = [all(_is_number(row[place]) for row in cells) and bool(cells) for place in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = (
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        )
        return f"| {' | '.join(parts)} |"

    rule = "|".join(
        "-" * (width + 1) + (":" if at_right else "-") for width, at_right in zip(widths, right, strict=True)
    )
    return "\n".join([line(header), f"|{rule}|", *map(line, cells)]) + "\n"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits and no exponent; "" for none."""
    if value is None:
        return ""
    whole = f"{value:.{digits}g}"
    return (
        f"{value:.0f}"
        if "e" in whole and abs(value) >= 1
        else f"{float(whole):.12f}".rstrip("0").rstrip(".")
        if "e" in whole
        else whole
    )


def percent(value: float | None) -> str:
    """A fraction as percent with two significant digits; "" for none."""
    return "" if value is None else f"{number(100 * value, 2)} %"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _is_number(cell: str) -> bool:
    return not cell.strip() or cell.strip()[0] in "+-.0123456789"
