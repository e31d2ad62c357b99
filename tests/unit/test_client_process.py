"""The end of a client's processes, also of those that left its process group."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from berth._client_process import end_group, start_group
from berth.processes import start_ticks

if TYPE_CHECKING:
    from pathlib import Path

# A helper in a group of its own that is deaf to TERM, as the file systems of a container may be at their start.
LEAVES = """
import os, signal, sys, time
if os.fork() == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(1000)
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1000)
"""


@pytest.mark.parametrize(("kind", "number"), [("polite", signal.SIGTERM), ("deaf", signal.SIGKILL)])
def test_what_left_the_group_ends_with_the_client(tmp_path: Path, kind: str, number: int) -> None:
    """A helper of the same session is gone when its client is, whether that heeded TERM or had to be killed."""
    pid_file = tmp_path / "pid"
    command = [sys.executable, "-c", LEAVES, str(pid_file), kind]
    process = start_group(command, env=dict(os.environ), log_path=tmp_path / "log", piped=False)
    while not pid_file.exists():
        time.sleep(0.02)
    end_group(process, grace_s=0.5)
    assert process.returncode == -number
    assert start_ticks(int(pid_file.read_text())) is None
