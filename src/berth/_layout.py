"""What stands beside the axes of a figure: the legend and the small print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine

from berth import _style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_LEGEND_LINE_IN = 0.125


def add_below(figure: Figure, ax: Axes, told: list[str], handles: list[Line2D]) -> None:
    """The legend and the small print; the figure grows by what stands below the axes.

    The legend is put in the upper left, where curves that rise leave room, as in the paper, and below when that hides
    data.
    """
    inside = bool(handles) and len(handles) <= 8
    if inside:
        ax.legend(handles=handles, loc="upper left")
        figure.draw_without_rendering()
        inside = not _legend_hides_data(ax)
    width, height = figure.get_size_inches()
    text = "\n".join(style.wrapped(line, width - 0.1, style.NOTE_SIZE_PT) for line in told)
    notes_in = (text.count("\n") + 1) * style.NOTE_SIZE_PT * 1.2 / 72 + 0.08 if text else 0.0
    columns = (
        1 if max((len(str(handle.get_label())) for handle in handles), default=0) > width * 9 else int(width // 1.7)
    )
    legend_in = 0.0 if inside or not handles else -(-len(handles) // columns) * _LEGEND_LINE_IN + 0.06
    total = height + notes_in + legend_in
    figure.set_size_inches(width, total)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, (notes_in + legend_in) / total, 1, height / total))
    if legend_in:
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
        below = figure.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.5, notes_in / total), ncols=columns, borderaxespad=0
        )
        # Constrained layout would make room for it a second time.
        below.set_in_layout(False)
    place: dict[str, Any] = {
        "va": "bottom",
        "linespacing": 1.15,
        "color": style.GREY,
        "fontsize": style.NOTE_SIZE_PT,
        "gid": "notes",
    }
    figure.text(0.05 / width, 0.04 / total, text, **place)


def _legend_hides_data(ax: Axes) -> bool:
    legend = ax.get_legend()
    if legend is None:
        return False
    box = legend.get_window_extent().padded(4)
    for line in ax.get_lines():
        places = ax.transData.transform(np.asarray(line.get_xydata(), dtype=float))
        # Points between the markers, because the line hides behind the legend too.
        steps = np.linspace(places[:-1], places[1:], 9).reshape(-1, 2) if len(places) > 1 else places
        within = (steps > [box.x0, box.y0]) & (steps < [box.x1, box.y1])
        if within.all(axis=1).any():
            return True
    return False
