"""A live view of the sweeps of a folder of results: `python -m berth.watch results`.

It reads files and nothing else, so that it works on a login node, beside a Snakemake that runs or none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TextIO

from berth.errors import BerthError
from berth.signals import Terminated, terminate_as_exception
from berth.watch_state import Watched
from berth.watch_view import Style, view

_DUMB = ("", "dumb")
_NARROW_FILE = 100
# The other screen of the terminal, without a cursor; and back, so that what stood there before is there again.
_ENTER, _LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_REST = "\033[H", "\033[K", "\033[J"


def main(argv: list[str] | None = None, out: TextIO = sys.stdout) -> int:
    """The exit code: 0, or 1 where there are no results to look at."""
    parser = argparse.ArgumentParser(prog="python -m berth.watch", description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", nargs="?", default="results", type=Path, help="the folder of results (default: results)"
    )
    parser.add_argument(
        "--once", action="store_true", help="print what there is and end; so it does where no terminal is"
    )
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two looks (default: 5)")
    given = parser.parse_args(argv)
    if given.every < 1:
        parser.error("--every: at least 1 second; a shared file system is asked at each look")
    watched = Watched(given.results)
    try:
        with terminate_as_exception():
            if given.once or not out.isatty():
                _print(watched, out)
            else:
                _follow(watched, out, given.every)
    except BerthError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except Terminated:
        return 0
    except BrokenPipeError:
        # Whoever read has read enough; Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _style(out: TextIO) -> Style:
    dumb = os.environ.get("TERM", "") in _DUMB
    utf8 = (out.encoding or "").lower().replace("-", "") == "utf8"
    colour = out.isatty() and not dumb and not os.environ.get("NO_COLOR")
    return Style(shutil.get_terminal_size((_NARROW_FILE, 24)).columns, colour=colour, utf8=utf8)


def _print(watched: Watched, out: TextIO) -> None:
    print("\n".join(view(watched.look(), time.time(), _style(out))), file=out, flush=True)


def _follow(watched: Watched, out: TextIO, every_s: float) -> None:
    if os.environ.get("TERM", "") in _DUMB:
        while True:
            _print(watched, out)
            print(f"-- {time.strftime('%H:%M:%S')}", file=out, flush=True)
            time.sleep(every_s)
    # Looked at first: an error belongs on the screen that stays.
    watched.look()
    out.write(_ENTER)
    try:
        while True:
            style = _style(out)
            height = max(4, shutil.get_terminal_size((80, 24)).lines)
            lines = view(watched.look(), time.time(), style)
            if len(lines) > height - 1:
                hidden = len(lines) - (height - 2)
                lines = [*lines[: height - 2], style.line(f"... {hidden} more lines: a taller window, or --once")]
            lines.append(style.line(f"{time.strftime('%H:%M:%S')}  every {every_s:g} s  Ctrl-C ends", "dim"))
            out.write(_HOME + "\n".join(line + _CLEAR_LINE for line in lines) + _CLEAR_REST)
            out.flush()
            time.sleep(every_s)
    finally:
        out.write(_LEAVE)
        out.flush()


if __name__ == "__main__":
    sys.exit(main())
