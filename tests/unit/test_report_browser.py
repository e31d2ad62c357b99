"""The report's page in a real headless browser: figures, tables, themes, a phone's width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from headless_browser import SKIP, Page, browser, program
from report_points import at_rate, crashed, flagged, make_report, record, records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(program() is None, reason=SKIP)

HOSTILE = "</script><script>window.hit=1</script>\"'><img src=x onerror=window.hit=1>"
FIGURE = "document.querySelector('figure[data-kind=output_throughput]')"
TABLE = "document.querySelector('[data-experiment-table]')"
TICKS = f"[...{FIGURE}.querySelectorAll('.stage text')].map(node => node.textContent)"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser with one tab, for all tests of this file."""
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with a flagged and a crashed point, and the published curves of figure 9."""
    return make_report(tmp_path_factory.mktemp("report"), records()).as_uri()


@pytest.fixture
def report(tab: Page, address: str) -> Page:
    """The report, freshly opened on a desktop's screen, with everything that it draws drawn."""
    return opened(tab, address, 1280, 900)


def opened(tab: Page, address: str, width: int, height: int, **more: bool) -> Page:
    tab.problems.clear()
    tab.requests.clear()
    tab.size(width, height, **more)
    tab.go(address)
    tab.ask("window.dispatchEvent(new Event('beforeprint'))")
    tab.settle()
    return tab


def box(tab: Page, expression: str) -> dict[str, float]:
    """Where an element is, in the window, after scrolling to it."""
    tab.ask(f"{expression}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    tab.settle()
    found: dict[str, float] = tab.ask(f"{expression}.getBoundingClientRect().toJSON()")
    return found


def drag(tab: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    tab.mouse("mouseMoved", *start)
    tab.mouse("mousePressed", *start, buttons=1)
    tab.mouse("mouseMoved", (start[0] + end[0]) / 2, (start[1] + end[1]) / 2, buttons=1)
    tab.mouse("mouseMoved", *end, buttons=1)
    tab.mouse("mouseReleased", *end)


def cells(tab: Page, heading: str) -> list[str]:
    """The cells of a column of the table of points."""
    found: list[str] = tab.ask(
        f"(t => [...t.tBodies[0].rows].map(row => row.cells[[...t.tHead.rows[0].cells].findIndex("
        f"head => head.textContent.startsWith('{heading}'))].textContent))({TABLE}.querySelector('table'))"
    )
    return found


def filter_rows(tab: Page, words: str) -> None:
    tab.ask(
        f"(input => {{ input.value = '{words}'; input.dispatchEvent(new Event('input')); }})"
        f"({TABLE}.querySelector('input'))"
    )


def press(tab: Page, expression: str) -> None:
    tab.ask(f"{expression}.click()")
    tab.settle()


def test_everything_is_drawn_and_nothing_complains(report: Page) -> None:
    """Seven figures and every table are drawn, without a message on the console and without a request."""
    assert report.ask("document.querySelectorAll('figure .stage > svg').length") == 7
    assert report.ask("document.querySelectorAll('.curve').length") > 7 * 2
    assert report.ask("document.querySelectorAll('.table table').length") == 5
    assert report.ask("document.querySelectorAll('.hollow').length") >= 7
    assert "crash" in report.ask(TICKS)
    assert report.problems == []
    assert len(report.requests) == 1


def test_pointer_shows_values(report: Page) -> None:
    """Over a level of concurrency the values of all its curves are shown, with their unit and the reason of a flag."""
    place = box(report, f"{FIGURE}.querySelector('.hollow')")
    report.mouse("mouseMoved", place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    told = report.ask(f"{FIGURE}.querySelector('.tip').innerText")
    assert "Concurrency 2" in told
    assert "Hops run 1 (hops01) warm_cache" in told
    assert "163.8 tokens/s" in told
    assert "192.0 tokens/s" in told
    report.mouse("mouseMoved", 2, 2)
    assert report.ask(f"{FIGURE}.querySelector('.tip').hidden")


def test_drag_wheel_keys_and_buttons_zoom(report: Page) -> None:
    """Each way of zooming leaves fewer levels on the axis, and each way back brings all of them."""
    levels = [str(2**power) for power in range(11)]
    place = box(report, f"{FIGURE}.querySelector('.stage')")
    left, middle = place["x"] + place["width"] * 0.3, place["y"] + place["height"] / 2

    def shown() -> list[str]:
        report.settle()
        told = report.ask(TICKS)
        return [level for level in levels if level in told]

    assert shown() == levels
    drag(report, (left, middle), (left + 300, middle + 4))
    assert 0 < len(shown()) < 8
    report.press("Escape")
    assert shown() == levels
    # A drag has given the figure the focus, so that the wheel is its own now.
    report.mouse("mouseWheel", left, middle, deltaX=0, deltaY=-120)
    report.mouse("mouseWheel", left, middle, deltaX=0, deltaY=-120)
    assert len(shown()) < 11
    press(report, f"{FIGURE}.querySelector('[aria-label=\"Reset zoom\"]')")
    assert shown() == levels
    press(report, f"{FIGURE}.querySelector('[aria-label=\"Zoom in\"]')")
    assert len(shown()) < 11


def test_wheel_scrolls_the_page_where_no_figure_has_the_focus(report: Page) -> None:
    """A reader who scrolls past a figure does not zoom it."""
    place = box(report, f"{FIGURE}.querySelector('.stage')")
    before = report.ask(TICKS)
    report.mouse("mouseWheel", place["x"] + 200, place["y"] + 100, deltaX=0, deltaY=-120)
    report.settle()
    assert report.ask(TICKS) == before


def test_keys_go_from_point_to_point(report: Page) -> None:
    """With the keyboard alone a figure is reached, its points are walked, and each is said to a screen reader."""
    report.ask(f"{FIGURE}.querySelector('.stage').focus()")
    report.press("ArrowRight")
    report.press("ArrowRight")
    assert report.ask("document.getElementById('said').textContent").startswith("Hops run 1 (hops01), concurrency 2: ")
    assert not report.ask(f"{FIGURE}.querySelector('.tip').hidden")
    report.press("Tab")
    assert report.ask("document.activeElement.closest('.legend') !== null")
    report.press("Enter")
    assert report.ask("document.activeElement.getAttribute('aria-pressed')") == "false"


def test_legend_hides_a_curve_in_every_figure(report: Page) -> None:
    """A curve that is switched off is gone from all figures of its experiment; with Shift it is alone."""
    first = f"{FIGURE}.querySelector('.legend button')"
    curves = "[...document.querySelectorAll('.stage')].map(s => s.querySelectorAll('.curve').length)"
    before = report.ask(curves)
    press(report, first)
    assert report.ask(curves) == [count - 1 for count in before]
    press(report, first)
    report.ask(f"{first}.dispatchEvent(new MouseEvent('click', {{shiftKey: true, bubbles: true}}))")
    assert report.ask(curves) == [1] * 7


def test_figure_of_latencies_has_its_statistics(report: Page) -> None:
    """The buttons above a figure of latencies change what is drawn."""
    figure = "document.querySelector('figure[data-kind=ttft]')"
    stage, tip = f"{figure}.querySelector('.stage')", f"{figure}.querySelector('.tip').textContent"
    report.ask(f"{stage}.focus()")
    report.press("ArrowRight")
    assert "11.14 ms" in report.ask(tip)
    press(report, f"[...{figure}.querySelectorAll('.switch button')].find(b => b.textContent === '99th percentile')")
    assert report.ask(f"{figure}.querySelector('[aria-pressed=true]').textContent") == "99th percentile"
    report.ask(f"{stage}.focus()")
    report.press("ArrowRight")
    assert "99.14 ms" in report.ask(tip)


def test_tables_sort_filter_and_copy(report: Page) -> None:
    """A heading sorts, once more the other way round, unknown values stay last; what is filtered is what is copied."""
    head = f"[...{TABLE}.querySelectorAll('th button')].find(b => b.textContent.startsWith('output throughput'))"
    filter_rows(report, "measured")
    press(report, head)
    values = [float(text.replace(",", "")) for text in cells(report, "output throughput") if text]
    assert values == sorted(values)
    press(report, head)
    again = cells(report, "output throughput")
    assert again[-1] == ""
    known = [float(text.replace(",", "")) for text in again if text]
    assert known == sorted(known, reverse=True)
    assert report.ask(f"{head}.closest('th').getAttribute('aria-sort')") == "descending"
    filter_rows(report, "measured warm_cache")
    assert cells(report, "concurrency") == ["2"]
    report.ask("window.copied = ''; navigator.clipboard.writeText = async text => { window.copied = text; }")
    press(report, f"[...{TABLE}.querySelectorAll('button')].find(b => b.textContent === 'Copy as CSV')")
    copied = report.ask("window.copied").splitlines()
    assert copied[0].startswith(
        "source,platform_label,deployment,spec,run,host,job_id,mode,concurrency,status,reason_codes,"
    )
    assert copied[1].startswith("measured,Hops,scout-hops,0123456789,1,hops01,41,paper,2,flagged,warm_cache,163.")
    assert len(copied) == 2


def test_dark_and_light(tab: Page, address: str) -> None:
    """The page follows the reader's system, and the switch overrides it both ways."""
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(18, 22, 27)"
    opened(tab, address, 1280, 900, dark=True)
    assert tab.ask(background) == dark
    button = "document.getElementById('theme')"
    assert tab.ask(f"{button}.textContent") == "Theme: system"
    press(tab, button)
    assert tab.ask(background) == light
    # The choice is kept. Browsers write it while they go on, so that a page that is opened at once may not find it.
    for _ in range(20):
        opened(tab, address, 1280, 900)
        if tab.ask(f"{button}.textContent") == "Theme: light":
            break
    press(tab, button)
    assert tab.ask(f"{button}.textContent") == "Theme: dark"
    assert tab.ask(background) == dark
    press(tab, button)
    assert tab.ask(background) == light


def test_contrast_is_enough(tab: Page, address: str) -> None:
    """Text has 4.5:1 and curves have 3:1 against the background, in both themes."""
    for dark in (False, True):
        opened(tab, address, 1280, 900, dark=dark)
        names = ["ink", "soft", "link", "warn", "bad", *(f"c{number}" for number in range(7)), "bg"]
        got = tab.ask(
            "(names => { const style = getComputedStyle(document.documentElement);"
            "return Object.fromEntries(names.map(n => [n, style.getPropertyValue('--' + n).trim()])); })"
            f"({names})"
        )
        ground = luminance(got.pop("bg"))
        for name, colour in got.items():
            high, low = sorted((luminance(colour), ground), reverse=True)
            least = 3.0 if name.startswith("c") else 4.5
            assert (high + 0.05) / (low + 0.05) >= least, (name, colour, dark)


def luminance(colour: str) -> float:
    """The relative luminance of a colour such as #0072b2, by WCAG 2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_phone_has_no_sideways_scroll(tab: Page, address: str) -> None:
    """On 390 pixels nothing is wider than the screen, figures keep their place, and a tap shows values."""
    opened(tab, address, 390, 844, touch=True)
    assert tab.ask("document.documentElement.scrollWidth") == 390
    assert (
        tab.ask("Math.max(...[...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().right))") < 390
    )
    place = box(tab, f"{FIGURE}.querySelector('.stage')")
    at = [{"x": place["x"] + 200, "y": place["y"] + 100}]
    tab.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=at)
    tab.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert not tab.ask(f"{FIGURE}.querySelector('.tip').hidden")
    assert tab.problems == []


def test_hostile_names_do_nothing(tab: Page, tmp_path: Path) -> None:
    """Names that look like markup are shown as they are, in figures, tips, legends and tables."""
    made: list[dict[str, Any]] = [record(1, 1), record(1, 2), record(1, 4)]
    for each in made:
        each["server"]["host"] = each["point"]["deployment"] = HOSTILE
    made[1] |= {"validity": flagged("token_mismatch", HOSTILE)}
    made[2] |= crashed(HOSTILE, HOSTILE)
    opened(tab, make_report(tmp_path, made, title=HOSTILE, published=[]).as_uri(), 1280, 900)
    tab.ask(f"{FIGURE}.querySelector('.stage').focus()")
    tab.press("ArrowRight")
    assert HOSTILE in tab.ask(f"{FIGURE}.querySelector('.tip').textContent")
    assert HOSTILE in tab.ask(f"{FIGURE}.querySelector('.legend').textContent")
    assert tab.ask("window.hit === undefined")
    assert tab.ask("document.images.length") == 0
    assert tab.problems == []


def test_rates_have_their_own_axis(tab: Page, tmp_path: Path) -> None:
    """A sweep over rates is drawn over rates, and its values are told at them, in every figure and in the table."""
    kinds = ["output_throughput_over_rate", "ttft_over_rate"]
    made = [at_rate(1, rate) for rate in (0.5, 2, 8)]
    opened(tab, make_report(tmp_path, made, published=[], kinds=kinds).as_uri(), 1280, 900)
    figure = "document.querySelector('figure[data-kind=output_throughput_over_rate]')"
    told = tab.ask(f"[...{figure}.querySelectorAll('.stage text')].map(node => node.textContent)")
    assert {"0.5", "2", "8", "Request rate (requests/s)"} <= set(told)
    assert tab.ask("[...document.querySelectorAll('.stage')].map(s => s.querySelectorAll('.curve').length)") == [1, 1]
    tab.ask(f"{figure}.querySelector('.stage').focus()")
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    tip = tab.ask(f"{figure}.querySelector('.tip').innerText")
    assert "2 requests/s" in tip
    assert "100 tokens/s" in tip
    assert cells(tab, "request rate") == ["0.5", "2", "8"]
    assert tab.problems == []


def test_a_sweep_that_stopped_says_so_and_is_no_crash(tab: Page, tmp_path: Path) -> None:
    """The word stands where the sweep stopped, without a cross, and the levels left out are rows with the reason."""
    made = [record(1, level) for level in (1, 2, 4)]
    for each in made:
        each["result"] |= {"output_throughput": 100.0}
    decides = {"levels": (1, 2, 4, 8), "stop_when": {"saturated": {"gain": 0.02, "points": 2}}, "refine": {}}
    opened(tab, make_report(tmp_path, made, decides, published=[]).as_uri(), 1280, 900)
    assert "stopped" in tab.ask(TICKS)
    assert tab.ask(f"{FIGURE}.querySelectorAll('path.mark').length") == 0
    assert "Left out, and not failed: Hops run 1 stopped at concurrency 4" in tab.ask("document.body.innerText")
    filter_rows(tab, "left_out")
    assert cells(tab, "concurrency") == ["8"]
    assert tab.problems == []


def test_long_tables_show_the_first_rows(tab: Page, tmp_path: Path) -> None:
    """Of many points only some are in the page; more come when asked for, and all of them are sorted and copied."""
    made = [record(run, level) for run in range(1, 21) for level in (1, 2, 4)]
    opened(tab, make_report(tmp_path, made, published=[], kinds=["ttft"]).as_uri(), 1280, 900)
    assert len(cells(tab, "run")) == 50
    assert tab.ask(f"{TABLE}.querySelector('.count').textContent") == "50 of 60 rows"
    press(tab, f"[...{TABLE}.querySelectorAll('button')].find(b => b.textContent === 'Show 10 more')")
    assert len(cells(tab, "run")) == 60
    assert tab.ask("document.querySelectorAll('.legend li').length") == 1
