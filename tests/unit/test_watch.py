"""The live view of sweeps, on a spool that the real lease, progress and records made, in real terminals."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from report_points import crashed, flagged, record

from berth.coordinates import RunId
from berth.errors import BerthError
from berth.holder import Identity
from berth.lease import lease
from berth.progress import SweepProgress, read_standing
from berth.spool import Spool
from berth.watch import main
from berth.watch_state import Watched
from berth.watch_view import Style, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from berth.watch_state import RunSeen

RUN = RunId("mine", "hops", "0123456789", 1)
LEVELS = [1, 2, 4, 8, 16]


@contextlib.contextmanager
def held(spool: Spool, **more: Any) -> Iterator[None]:
    """The lease of a run, held by this process."""
    with lease(spool.folder, heartbeat_s=1, stale_s=10, poll_s=0.1, token="0" * 32, **more):
        yield


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[tuple[Spool, SweepProgress]]:
    """A sweep of five levels: two are done, one of them flagged, one crashed, and the fourth has 40 of 64 requests."""
    spool = Spool(tmp_path / "results", RUN)
    with held(spool):
        progress = SweepProgress(list(LEVELS), file=spool.progress)
        progress.server(2)
        for level in (1, 2, 4):
            progress.start(level)
            if level == 4:
                spool.fail(level, record(1, level, **crashed("The server was killed.")), None)
            else:
                doubt = {"validity": flagged("warm_cache", "57%")} if level == 2 else {}
                spool.keep(
                    level, record(1, level, **doubt, requests_file=f"c{level}.requests.json.gz"), {"ttfts": [1.0]}
                )
            progress.finish(level, 60.0, "told", failed=level == 4)
        progress.start(8)
        progress._saved = 0.0
        progress.update(40, 64)
        yield spool, progress


def look(spool: Spool) -> RunSeen:
    (seen,) = Watched(spool.results).look()
    return seen


def shown(spool: Spool, width: int = 120, after_s: float = 20.0, **more: bool) -> list[str]:
    """The view as it is `after_s` seconds after the running point began."""
    runs = Watched(spool.results).look()
    standing = runs[0].standing
    return view(runs, standing.level_since_s + after_s if standing else time.time(), Style(width, **more))


def test_running_sweep_is_told(sweep: tuple[Spool, SweepProgress]) -> None:
    """Server, running point with requests, rate and time left, ended points, doubts, failures and what is to go."""
    spool, _ = sweep
    text = "\n".join(shown(spool)).replace("\u00a0", " ")
    assert "1 run: 1 measuring; 2 points done, 1 failed, 2 to go; about 1 min 12 s left in all" in text
    assert "mine on hops, run 1 (0123456789)" in text
    assert re.search(r"server +measuring, ready for .* on .*, started for the 2\. time", text)
    assert re.search(
        r"point +concurrency 8: █+░+ 40/64 requests \(62%\) in 20 s, 2\.00 requests/s, about 12 s left", text
    )
    assert re.search(r"to go +16\n", text)
    assert re.search(r"done +1: 101\.3 tok/s +2: 163\.8 tok/s\n", text)
    assert re.search(r"flagged +warm_cache at 2\n", text)
    assert re.search(r"failed +4: crash: The server was killed\.\n", text)
    assert re.search(r"left +about 1 min 12 s$", text)


@pytest.mark.parametrize("width", [30, 44, 80, 200])
def test_no_line_is_wider_than_the_terminal(sweep: tuple[Spool, SweepProgress], width: int) -> None:
    """In any width every line fits, and says the same."""
    lines = shown(sweep[0], width)
    assert max(map(len, lines)) <= width
    assert "40/64" in " ".join(lines)
    assert "crash" in " ".join(lines)


def test_terminal_without_utf8_gets_ascii(sweep: tuple[Spool, SweepProgress]) -> None:
    """Where only ASCII can be shown, only ASCII is written."""
    text = "\n".join(shown(sweep[0], utf8=False))
    assert text.isascii()
    assert "#####" in text


def test_starting_server_shows_its_log_without_what_controls_a_terminal(tmp_path: Path) -> None:
    """Before the first point the last line of the server's log is told, with no escape sequence of it."""
    spool = Spool(tmp_path / "results", RUN)
    log = spool.results / "logs" / "server" / RUN.key / "server.log"
    log.parent.mkdir(parents=True)
    log.write_text("first\nLoading weights:\033]0;title\007\033[31m 40%\n\n")
    with held(spool):
        SweepProgress(list(LEVELS), file=spool.progress).server(1)
        text = "\n".join(view([look(spool)], time.time(), Style(100, colour=True)))
    assert "1 starting" in text
    assert "time left not known before a first point" in text
    assert "Loading weights: ]0;title [31m 40%" in text
    assert set(re.findall(r"\033\[(\d+)m", text)) <= {"0", "1", "2", "31", "32", "33"}


def test_ended_sweep_leaves_no_progress(sweep: tuple[Spool, SweepProgress]) -> None:
    """At its end a sweep takes its file away, but not that of a successor."""
    spool, progress = sweep
    value = json.loads(spool.progress.read_text())
    spool.progress.write_text(json.dumps({**value, "pid": value["pid"] + 1}))
    progress.end()
    assert read_standing(spool.progress) is not None
    spool.progress.write_text(json.dumps(value))
    progress.end()
    assert not spool.progress.exists()
    assert look(spool).state == "starting"


def test_released_lease_is_no_sweep(tmp_path: Path) -> None:
    """After a sweep its run is listed by what is done."""
    spool = Spool(tmp_path / "results", RUN)
    with held(spool):
        spool.keep(1, record(1, 1, requests_file="c1.requests.json.gz"), {})
    assert look(spool).state == "idle"
    assert shown(spool)[-1] == "  mine on hops (0123456789): 1 run, 1 done"


def test_killed_sweep_is_told_dead(tmp_path: Path) -> None:
    """A sweep that was killed on this host is dead, whatever its last progress says, and what is done is still told."""
    spool = Spool(tmp_path / "results", RUN)
    code = (
        "import os, sys; from pathlib import Path; from berth.coordinates import RunId; from berth.lease import lease\n"
        "from berth.progress import SweepProgress; from berth.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), RunId('mine', 'hops', '0123456789', 1))\n"
        "with lease(spool.folder, heartbeat_s=1, stale_s=10, poll_s=0.1, token='0' * 32):\n"
        "    SweepProgress([1, 2], file=spool.progress).server(1)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(spool.results)], check=False)
    assert look(spool).state == "dead"
    text = "\n".join(shown(spool))
    assert "1 dead" in text
    assert "start Snakemake again" in text


def test_silent_sweep_elsewhere_is_told(tmp_path: Path) -> None:
    """A sweep of another host without a sign of life may be dead; with one it goes on."""
    spool = Spool(tmp_path / "results", RUN)
    there = replace(Identity.current(), host="node7", boot_id="b", machine_id="m")
    with held(spool, identity=there):
        assert look(spool).state == "starting"
        assert "starting, sweep since" in "\n".join(shown(spool))
        stamp = time.time() - 300
        beat = next(spool.folder.glob("lease.*.json"))
        os.utime(beat, (stamp, stamp))
        seen = look(spool)
    assert seen.state == "silent"
    assert "no sign of life from node7 for 5 min 0" in "\n".join(view([seen], time.time(), Style(120)))


def test_accepted_point_counts_once(sweep: tuple[Spool, SweepProgress]) -> None:
    """A point that was accepted while its copy lies in the spool is one point, and an old failure of it is none."""
    spool, _ = sweep
    accepted = spool.results / "points" / RUN.key
    accepted.mkdir(parents=True)
    (accepted / "c1.json").write_bytes((spool.folder / "c1.json").read_bytes())
    spool.fail(1, record(1, 1, **crashed("before")), None)
    spool.fail(16, record(1, 16, **crashed("before")), None)
    seen = look(spool)
    assert [point.level for point in seen.done] == [1, 2]
    # 16 is measured again by this very sweep.
    assert [point.level for point in seen.failed] == [4]


def test_files_that_cannot_be_read_are_left_out(sweep: tuple[Spool, SweepProgress]) -> None:
    """A record that is just being copied, foreign files and a foreign lease do not end the view."""
    spool, _ = sweep
    (spool.folder / "c32.json").write_text('{"point":')
    (spool.folder / "notes.json").write_text("[]")
    other = spool.results / "spool" / "mine" / "hops" / "0123456789" / "run2"
    other.mkdir()
    (other / "lease.000001.json").write_text("{}")
    text = "\n".join(shown(spool))
    assert "2 points done" in text


def test_progress_is_saved_seldom_and_never_ends_a_sweep(sweep: tuple[Spool, SweepProgress]) -> None:
    """Between two saves of the running point lie seconds, and a folder that is gone is no error."""
    spool, progress = sweep
    progress.update(41, 64)
    assert read_standing(spool.progress).completed == 40  # type: ignore[union-attr]
    progress.file = spool.results / "gone"
    progress.file.write_text("a file where a folder should be")
    progress.file = progress.file / "progress.json"
    progress.start(16)


def test_missing_folder_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there is told, with what to name instead."""
    with pytest.raises(BerthError, match="no such folder"):
        Watched(tmp_path / "nothing").look()
    assert main([str(tmp_path / "nothing"), "--once"]) == 1
    assert "Name the folder of results" in capsys.readouterr().err


def test_without_a_terminal_it_prints_once(sweep: tuple[Spool, SweepProgress]) -> None:
    """Into a pipe or a file it writes plain lines and ends."""
    out = io.StringIO()
    assert main([str(sweep[0].results)], out) == 0
    assert "concurrency 8: " in out.getvalue()
    assert "\033" not in out.getvalue()


class Terminal:
    """The command in a pseudo terminal of some size."""

    def __init__(self, results: Path, columns: int, lines: int, term: str) -> None:
        self._own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        env = {**os.environ, "TERM": term, "PYTHONIOENCODING": "utf-8"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            env.pop(name, None)
        argv = [sys.executable, "-m", "berth.watch", str(results), "--every", "1"]
        self.process = subprocess.Popen(argv, stdin=other, stdout=other, stderr=other, env=env)
        os.close(other)
        self.text = ""

    def read_until(self, wanted: str, times: int = 1) -> None:
        end = time.monotonic() + 60
        while self.text.count(wanted) < times:
            assert time.monotonic() < end, self.text
            if select.select([self._own], [], [], 1)[0]:
                self.text += os.read(self._own, 65536).decode()

    def end(self, signum: signal.Signals) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signum)
        code = self.process.wait(timeout=30)
        with contextlib.suppress(OSError):
            while select.select([self._own], [], [], 0.5)[0] and (more := os.read(self._own, 65536)):
                self.text += more.decode()
        os.close(self._own)
        return code


@pytest.mark.parametrize("columns", [40, 132])
def test_terminal_is_redrawn_and_left_as_it_was(sweep: tuple[Spool, SweepProgress], columns: int) -> None:
    """In a terminal the view is drawn in place again and again, fits it, and goes when it is asked to end."""
    terminal = Terminal(sweep[0].results, columns, 12, "xterm")
    terminal.read_until("Ctrl-C ends", times=2)
    assert terminal.end(signal.SIGINT) == 0
    text = terminal.text
    assert text.startswith("\033[?1049h")
    assert text.rstrip().endswith("\033[?25h\033[?1049l")
    assert text.count("\033[H") >= 2
    assert "more lines: a taller window" in text or columns == 132
    screen = re.sub(r"\033\[[?\d]*[a-zA-Z]", "", text.split("\033[H")[1]).split("\r\n")
    assert len(screen) <= 12
    assert max(map(len, screen)) <= columns
    assert "Traceback" not in text


def test_dumb_terminal_gets_plain_lines(sweep: tuple[Spool, SweepProgress]) -> None:
    """A terminal without control sequences gets none: the view is written below the one before."""
    terminal = Terminal(sweep[0].results, 80, 24, "dumb")
    terminal.read_until("-- ", times=2)
    assert terminal.end(signal.SIGTERM) == 0
    assert "\033" not in terminal.text
    assert terminal.text.count("1 run: 1 measuring") == 2
