"""Figures of measured and published points: what is drawn, where, and as which files."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from berth.columns import LATENCIES, STATISTICS
from berth.errors import BerthError
from berth.figures import KINDS, draw_figure, make_figure
from berth.frames import combine, frame, read_published
from berth.published import find_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "data" / "published"


def row(run: int, concurrency: int, status: str = "ok", **more: Any) -> dict[str, Any]:
    """A measured row with throughput 100 times and latencies 10 times the concurrency, unless it has no value."""
    measured = status in {"ok", "flagged"}
    values = {
        "output_throughput_tok_s": 100.0 * concurrency,
        "request_throughput_req_s": 1.0 * concurrency,
        **{f"{s}_{m}_ms": 10.0 * concurrency for s in STATISTICS for m in LATENCIES},
    }
    return {
        "source": "measured",
        "experiment": "local",
        "platform": "hops",
        "platform_label": "Hops",
        "deployment": "tiny",
        "spec": "0123456789",
        "run": run,
        "host": f"hops{run:02d}",
        "concurrency": concurrency,
        "status": status,
        **(values if measured else {}),
        **more,
    }


def lines(figure: Figure, start: str) -> list[Line2D]:
    return [line for ax in figure.axes for line in ax.get_lines() if str(line.get_gid()).startswith(start)]


def words(figure: Figure, gid: str) -> list[tuple[str, tuple[float, float]]]:
    """Annotations of a kind in the first axes: text and the place that they belong to."""
    found = [text for text in figure.axes[0].texts if text.get_gid() == gid]
    return [(text.get_text(), (float(text.xy[0]), float(text.xy[1]))) for text in found]


def labels(figure: Figure) -> list[str]:
    legend = figure.axes[0].get_legend() or figure.legends[0]
    return [text.get_text() for text in legend.get_texts()]


def notes(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts if text.get_gid() == "notes").replace("\n", " ")


def svg_texts(path: Path) -> list[str]:
    return [
        "".join(node.itertext()).strip()
        for node in ET.parse(path).iter()
        if node.tag == "{http://www.w3.org/2000/svg}text"
    ]


@pytest.fixture
def mixed() -> pd.DataFrame:
    """Two runs: a gap, a flagged point, a failed one, and a crash at the end."""
    rows = [row(1, level) for level in (1, 2, 16)]
    rows += [row(1, 4, "not_run"), row(1, 8, "flagged", reason_codes="client_bound")]
    rows += [row(1, 32, "crashed", reason_codes="server_restarted")]
    rows += [row(2, level) for level in (1, 2, 4, 8, 16)]
    rows += [row(2, 32, "failed", reason_codes="zero_tokens;short_run", output_throughput_tok_s=7.0)]
    return frame(rows)


def test_a_figure_becomes_a_real_file_in_every_format(tmp_path: Path, mixed: pd.DataFrame) -> None:
    """PDF, SVG and PNG are written, can be opened, are pictures at print resolution, with nothing beside them."""
    outputs = [tmp_path / f"a.{ending}" for ending in ("pdf", "svg", "png")]
    draw_figure(mixed, "output_throughput", "A title", outputs)
    assert outputs[0].read_bytes().startswith(b"%PDF-")
    assert "A title" in svg_texts(outputs[1])
    with Image.open(outputs[2]) as image:
        assert image.width >= 3.5 * 240
        assert len(set(image.convert("RGB").get_flattened_data())) > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_figure_has_its_y_label_and_a_curve_per_run_and_panel(
    tmp_path: Path, mixed: pd.DataFrame, kind: str
) -> None:
    """The SVG names what is drawn, and holds each run once in each panel."""
    if kind.endswith("_over_rate"):
        mixed = mixed.assign(request_rate_req_s=mixed["concurrency"].astype("Float64") / 2, concurrency=pd.NA)
    draw_figure(mixed, kind, "T", [tmp_path / "a.svg"])
    assert KINDS[kind].label in svg_texts(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count('id="curve-') == 2 * len(KINDS[kind].panels)


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_the_same_table_gives_the_same_bytes(tmp_path: Path, mixed: pd.DataFrame, ending: str) -> None:
    """No date and no random id: a figure that is drawn again does not differ."""
    for name in ("a", "b"):
        draw_figure(mixed, "output_throughput", "T", [tmp_path / f"{name}.{ending}"])
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_a_gap_splits_the_line(mixed: pd.DataFrame) -> None:
    """The line has no value where the point is not run, crashed or failed, and its true values elsewhere."""
    first, second = lines(make_figure(mixed, "output_throughput", "T"), "curve-")
    assert first.get_xdata().tolist() == [1, 2, 4, 8, 16, 32]
    np.testing.assert_array_equal(first.get_ydata(), [100, 200, np.nan, 800, 1600, np.nan])
    np.testing.assert_array_equal(second.get_ydata(), [100, 200, 400, 800, 1600, np.nan])


def test_a_level_that_only_a_sibling_has_is_a_gap() -> None:
    """A point whose row is absent altogether splits the line too; another platform's levels do not."""
    other = [row(1, level, platform="goodall", platform_label="Goodall") for level in (1, 3, 8)]
    table = frame([*(row(1, level) for level in (1, 2, 8)), *(row(2, level) for level in (1, 2, 4, 8)), *other])
    first, _, third = lines(make_figure(table, "output_throughput", "T"), "curve-")
    np.testing.assert_array_equal(first.get_ydata(), [100, 200, np.nan, 800])
    assert third.get_ydata().tolist() == [100, 300, 800]


def test_a_flagged_point_is_on_the_curve_and_hollow(mixed: pd.DataFrame) -> None:
    """A white marker lies over the flagged point only, and the legend says what it means."""
    figure = make_figure(mixed, "output_throughput", "T")
    (hollow,) = lines(figure, "flagged-")
    assert (hollow.get_xdata().tolist(), hollow.get_ydata().tolist()) == ([8], [800])
    assert hollow.get_markerfacecolor() == "white"
    assert labels(figure)[-1] == "flagged (hollow)"


def test_crash_stands_at_the_crashed_point_and_the_reason_at_the_failed_one(mixed: pd.DataFrame) -> None:
    """Without a number they stand at 0, which no refused number (7.0 here) can change."""
    figure = make_figure(mixed, "output_throughput", "T")
    assert words(figure, "crash") == [("crash", (32, 0))]
    assert words(figure, "failure") == [("zero_tokens +1", (32, 0))]
    assert len(lines(figure, "mark")) == 2


@pytest.mark.parametrize("kind", ["output_throughput", "ttft"])
def test_the_svg_says_crash_once_per_crashed_point_and_panel(tmp_path: Path, mixed: pd.DataFrame, kind: str) -> None:
    """The word is text in the SVG, as often as there are crashes, and absent without one."""
    more = combine([mixed, frame([row(3, 16, "crashed"), row(3, 32)])])
    without = mixed[mixed["status"] != "crashed"]
    for name, table, count in (("one", mixed, 1), ("two", more, 2), ("none", without, 0)):
        draw_figure(table, kind, "T", [tmp_path / f"{name}.svg"])
        assert svg_texts(tmp_path / f"{name}.svg").count("crash") == count * len(KINDS[kind].panels)


def test_a_latency_figure_marks_a_crash_at_the_height_of_the_last_point(mixed: pd.DataFrame) -> None:
    """A crash has no latency; on a logarithmic axis it cannot stand at 0."""
    figure = make_figure(mixed, "ttft", "T")
    assert words(figure, "crash") == [("crash", (32, 160))]
    assert [ax.get_title("left") for ax in figure.axes] == ["Mean", "Median", "99th percentile"]


def test_throughput_against_latency_lists_the_points_without_a_value(mixed: pd.DataFrame) -> None:
    """There is no place for them among these axes, so the small print names them."""
    figure = make_figure(mixed, "throughput_vs_latency", "T")
    assert "Hops run 1 (hops01) at 32 (crash), Hops run 2 (hops02) at 32 (zero_tokens +1)" in notes(figure)
    first = lines(figure, "curve-")[0]
    np.testing.assert_array_equal(first.get_xdata(), [10, 20, np.nan, 80, 160, np.nan])


def test_axes_are_the_papers() -> None:
    """Log2 concurrency from 1 to 1024 with plain numbers, and a linear throughput from 0."""
    (ax,) = make_figure(frame([row(1, 2**power) for power in range(11)]), "output_throughput", "T").axes
    assert (ax.get_xscale(), ax.xaxis.get_transform().base, ax.get_yscale()) == ("log", 2, "linear")
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(2**power) for power in range(11)]
    assert ax.get_ylim()[0] == 0


def test_a_flat_curve_is_whole_below_the_top() -> None:
    """Room above a curve is a part of its height, and not of its range."""
    rows = [row(1, level, output_throughput_tok_s=640.0 + level) for level in (1, 2)]
    (ax,) = make_figure(frame(rows), "output_throughput", "T").axes
    assert ax.get_ylim()[1] > 642 * 1.02


def test_curves_are_told_apart_by_what_differs() -> None:
    """Platform, run and host name a curve; source, deployment, client or spec are added only where needed."""
    plain = frame([row(1, 1), row(2, 1)])
    assert labels(make_figure(plain, "output_throughput", "T")) == ["Hops run 1 (hops01)", "Hops run 2 (hops02)"]
    specs = frame([row(1, 1), row(1, 1, spec="abcdef0123")])
    assert [label.split(" (")[0] for label in labels(make_figure(specs, "output_throughput", "T"))] == [
        "Hops run 1, 0123456789",
        "Hops run 1, abcdef0123",
    ]
    clients = frame([row(1, 1, client="vllm-bench"), row(1, 1, spec="abcdef0123", client="guidellm")])
    assert [label.split(" (")[0] for label in labels(make_figure(clients, "output_throughput", "T"))] == [
        "Hops run 1, vllm-bench",
        "Hops run 1, guidellm",
    ]
    both = combine([plain, read_published(PUBLISHED / "beltre2025" / "fig12.csv")])
    assert labels(make_figure(both, "output_throughput", "T"))[1:3] == [
        "Hops run 2 (hops02)",
        "Hops run 1, published (hops39-42)",
    ]


def test_platforms_differ_in_colour_and_runs_in_line_and_marker() -> None:
    """Two platforms have two hues; two runs of one keep the hue and differ in style."""
    goodall = [row(run, 1, platform="goodall", platform_label="Goodall") for run in (1, 2)]
    drawn = lines(make_figure(frame([row(1, 1), row(2, 1), *goodall]), "output_throughput", "T"), "curve-")
    hues = [matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(line.get_color()))[0] for line in drawn]
    assert hues[0] == pytest.approx(hues[1], abs=0.02)
    assert abs(hues[0] - hues[2]) > 0.1
    assert drawn[0].get_linestyle() != drawn[1].get_linestyle()
    assert drawn[0].get_marker() != drawn[1].get_marker()
    assert drawn[0].get_marker() == drawn[2].get_marker()


def test_figure_12_has_the_crash_of_the_data_file_and_states_the_conflict(tmp_path: Path) -> None:
    """One crash at 1024 with 0.80 tokens/s, run 3 ends after 128, and the note stands below the axes."""
    _, described = find_figure(PUBLISHED, "beltre2025/fig12")
    table = read_published(described.path)
    figure = make_figure(table, "output_throughput", described.title)
    assert words(figure, "crash") == [("crash", (1024, 0.8))]
    assert np.isfinite(lines(figure, "curve-")[2].get_ydata()).tolist() == [True] * 8 + [False] * 3
    assert "text says that it crashed at 512" in notes(figure)
    draw_figure(table, "output_throughput", described.title, [tmp_path / "f.svg"])
    assert svg_texts(tmp_path / "f.svg").count("crash") == 1


@pytest.mark.parametrize("name", ["fig9", "fig10", "fig12"])
def test_the_picture_in_the_docs_is_what_the_data_gives(tmp_path: Path, name: str) -> None:
    """The committed picture has the size of the drawn one, is small, and differs by no more than a font's rendering."""
    _, described = find_figure(PUBLISHED, f"beltre2025/{name}")
    draw_figure(read_published(described.path), "output_throughput", described.title, [tmp_path / "f.png"])
    committed = ROOT / "docs" / "figures" / f"published-{name}.png"
    assert committed.stat().st_size < 120_000
    with Image.open(committed) as old, Image.open(tmp_path / "f.png") as new:
        assert old.size == new.size
        difference = np.asarray(old.convert("L"), dtype=float) - np.asarray(new.convert("L"), dtype=float)
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_without_points_says_so(kind: str) -> None:
    """No rows, and rows that were all not run, give axes with "no points yet"."""
    for table in (frame([]), frame([row(1, 4, "not_run")])):
        figure = make_figure(table, kind, "T")
        assert [text.get_text() for text in figure.axes[0].texts] == ["no points yet"]


def test_a_metric_that_no_point_has_is_not_called_missing_points() -> None:
    """The published curves have no latencies: the figure says "not measured"."""
    figure = make_figure(read_published(PUBLISHED / "beltre2025" / "fig9.csv"), "e2el", "T")
    assert [text.get_text() for text in figure.axes[0].texts] == ["not measured"]


def test_the_mode_and_the_callers_note_stand_below(mixed: pd.DataFrame) -> None:
    """A figure names the benchmark mode of its points, so that two modes are not mistaken for one."""
    told = notes(make_figure(mixed.assign(mode="clean"), "output_throughput", "T", note="Measured at night."))
    assert told == "Measured at night. Benchmark mode: clean."


def test_a_legend_that_would_hide_points_stands_below_the_axes() -> None:
    """Curves that fall from the upper left push the legend out; rising ones leave it inside."""
    falling = frame([row(1, 2**p, output_throughput_tok_s=1000.0 - 90 * p) for p in range(8)])
    rising = frame([row(1, 2**p) for p in range(8)])
    outside, inside = (make_figure(table, "output_throughput", "T") for table in (falling, rising))
    assert (outside.axes[0].get_legend(), len(outside.legends)) == (None, 1)
    assert (inside.axes[0].get_legend() is None, len(inside.legends)) == (False, 0)


def test_hundreds_of_runs_are_bundled_by_platform_with_their_gaps_and_marks() -> None:
    """One line per platform, pen lifted between runs and at gaps; alike crashes share a word with their number."""
    rows = [row(run, level) for run in range(1, 301) for level in (1, 2, 8)]
    rows += [row(run, 4, "crashed") for run in range(1, 301)]
    figure = make_figure(frame(rows), "output_throughput", "T")
    (bundle,) = lines(figure, "bundle-")
    assert np.isfinite(bundle.get_ydata()).sum() == 900
    np.testing.assert_array_equal(bundle.get_ydata()[:6], [100, 200, np.nan, 800, np.nan, 100])
    assert labels(figure) == ["Hops, 300 runs"]
    assert [text for text, _ in words(figure, "crash")] == ["crash (300 runs)"]


def test_an_unknown_kind_or_format_is_one_clear_error_and_writes_nothing(tmp_path: Path, mixed: pd.DataFrame) -> None:
    """The nearest kind is suggested, and the formats are listed."""
    with pytest.raises(BerthError, match='Did you mean "output_throughput"'):
        draw_figure(mixed, "output_throughputs", "T", [tmp_path / "a.png"])
    with pytest.raises(BerthError, match=r"a\.jpg.*\.pdf, \.svg, \.png"):
        draw_figure(mixed, "ttft", "T", [tmp_path / "a.png", tmp_path / "a.jpg"])
    assert list(tmp_path.iterdir()) == []
