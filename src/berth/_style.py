"""How figures look, and how they become files: the same bytes for the same data."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from berth.errors import BerthError
from berth.fsio import atomic_file

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Okabe and Ito's colours for all kinds of colour vision, without the yellow that vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
COLUMN_WIDTH_IN = 3.5
PAGE_WIDTH_IN = 7.16
NOTE_SIZE_PT = 6.0
GREY = "#555555"

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 7,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 6.5,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "legend.borderpad": 0.2,
    "legend.handlelength": 2.6,
    "legend.labelspacing": 0.3,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.6,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    # Text stays text: searchable, selectable, and set in the reader's own font where ours is absent.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    # Without a fixed salt, the ids in an SVG differ from run to run.
    "svg.hashsalt": "berth",
}
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": "Berth"},
    "svg": {"Date": None, "Creator": "Berth"},
    "png": {"Software": None},
}
FORMATS = tuple(_METADATA)


def check_formats(outputs: list[Path]) -> None:
    """Raise a BerthError for a file name whose ending is none of pdf, svg, png."""
    for path in outputs:
        if path.suffix.removeprefix(".") not in FORMATS:
            raise BerthError(f'{path}: no figure format "{path.suffix}". Use one of: .{", .".join(FORMATS)}.')


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the file's ending, whole or not at all. Call it with RC in force."""
    kind = path.suffix.removeprefix(".")
    with atomic_file(path) as handle:
        options: dict[str, Any] = {"pil_kwargs": {"optimize": True}} if kind == "png" else {}
        figure.savefig(handle, format=kind, dpi=240, metadata=_METADATA[kind], **options)


def look(group: int, run: int, *, alone: bool = False) -> dict[str, Any]:
    """Colour by group (platform and definition), paler from run to run; line and marker by run.

    In a figure of one group (`alone`) the colour tells the runs apart instead.
    """
    colour = COLOURS[(run if alone else group) % len(COLOURS)]
    paler = 0.0 if alone else min(0.13 * run, 0.5)
    red, green, blue = (part + (1 - part) * paler for part in to_rgb(colour))
    return {
        "color": to_hex((red, green, blue)),
        "linestyle": LINES[run % len(LINES)],
        "marker": MARKERS[run % len(MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.3,
    }


def level_axis(ax: Axes, levels: NDArray[np.float64], most: int, *, rates: bool = False) -> None:
    """A log2 axis with the levels as plain numbers; when there are more than `most`, powers of two or of four..."""
    ax.set_xscale("log", base=2)
    ax.set_xlabel("Request rate (requests/s)" if rates else "Maximum request concurrency")
    if not len(levels):
        levels = np.exp2(np.arange(11))
    ticks = levels
    if len(ticks) > most:
        powers = np.arange(np.floor(np.log2(levels[0])), np.ceil(np.log2(levels[-1])) + 1)
        ticks = np.exp2(powers[:: -(-len(powers) // most)])
    ax.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(plain))
    ax.set_xlim(levels[0] / 1.19, levels[-1] * 1.19)


def log_axis(axis: Axis, *, dense: bool) -> None:
    """Plain numbers on a log10 axis, of which the data is known: 1, 2, 5 (or 1, 3) of each decade."""
    low, high = axis.get_view_interval()
    fine = dense or high < 20 * low
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if fine else (1.0, 3.0), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(plain))


def linear_axis(ax: Axes) -> None:
    """Plain numbers from 0 on, of which the data is known."""
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_formatter(FuncFormatter(plain))
    # matplotlib leaves room by the range of the data: a flat curve would be cut at the top.
    highest = float(ax.dataLim.intervaly[1])
    top = ax.get_ylim()[1]
    ax.set_ylim(0, max(top, highest * 1.03) if np.isfinite(highest) else top)


def plain(value: float, _position: int | None = None) -> str:
    """A number without exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.6g}"


def wrapped(text: str, width_in: float, size_pt: float) -> str:
    """The text in lines that fit a width; the mean character of DejaVu Sans is 0.515 of the font's size wide."""
    return textwrap.fill(text, max(20, int(width_in * 72 / (size_pt * 0.515))))
