"""tunnel.sh as `access` writes it, and the probe's tunnel, through a real sshd on loopback."""

from __future__ import annotations

import contextlib
import getpass
import http.client
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from access_cases import KEY, MODEL, Site, running

from berth.access import refresh
from berth.access_probe import probe
from berth.access_target import target_of
from berth.probe import ask
from berth.sockets import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="needs sshd and ssh: Debian's openssh-server and openssh-client (tools/install-test-packages.sh)",
)


@dataclass(frozen=True)
class Login:
    """A login node: where its sshd listens, and the configuration that clients get into it with."""

    port: int
    config: Path
    process: psutil.Process

    def sessions(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)

    def cut(self) -> None:
        """End every connection, as a network that fails does."""
        for process in self.sessions():
            # One may end with another.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    """An sshd with keys of its own; nothing of this machine's ssh is read or changed."""
    folder = tmp_path_factory.mktemp("login")
    if os.geteuid() == 0:
        # Where sshd shuts up the part of it that talks to strangers; Debian's service makes it at its start.
        Path("/run/sshd").mkdir(exist_ok=True, mode=0o755)
    for name in ("host", "person"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized").write_text((folder / "person.pub").read_text())
    port = free_port("127.0.0.1", 20000, 29999)
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
    )
    (folder / "known").write_text(f"[127.0.0.1]:{port},[localhost]:{port} {(folder / 'host.pub').read_text()}")
    config = folder / "config"
    config.write_text(
        f"Host *\n  IdentityFile {folder}/person\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking yes\n"
    )
    with (folder / "log").open("wb") as log:
        sshd = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log)
    found = Login(port, config, psutil.Process(sshd.pid))
    try:
        until(lambda: b"listening" in (folder / "log").read_bytes() or sshd.poll() is not None)
        argv = ["ssh", "-F", str(config), "-p", str(port), "127.0.0.1", "true"]
        tried = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert tried.returncode == 0, tried.stderr + (folder / "log").read_text()
        yield found
    finally:
        found.cut()
        sshd.terminate()
        sshd.wait()


def site(tmp_path: Path, login: Login) -> Site:
    """A site that is reached through the login node, by way of itself as jump host."""
    user = getpass.getuser()
    way = {"host": "127.0.0.1", "port": login.port, "user": user, "jump": f"{user}@localhost:{login.port}"}
    return Site.create(tmp_path / "site", {"login": way})


def until(condition: Callable[[], Any]) -> None:
    """Wait for what must happen; a test that waits in vain fails by pytest's time limit."""
    while not condition():
        time.sleep(0.05)


def answering(port: int) -> int | None:
    """The port of the server that answers at the tunnel's end; None where none does."""
    body = {"model": MODEL, "messages": []}
    answer = ask(f"http://127.0.0.1:{port}", "/v1/chat/completions", timeout_s=10, api_key=KEY, body=body)
    return answer.json()["port"] if answer.status == 200 else None


def test_the_tunnel_follows_the_server_and_comes_back(tmp_path: Path, login: Login) -> None:
    """One login serves all moves; a lost connection is made again; the end of the script leaves nothing open."""
    here = site(tmp_path, login)
    with running() as first, running() as second:
        here.serve("a", first.port)
        target = here.written("a")
        port = free_port("127.0.0.1", 20000, 29999)
        shown = run(target.folder / "tunnel.sh", login, "--show")
        assert f"-L 127.0.0.1:18000:127.0.0.1:{first.port} -p{login.port} -J " in shown
        with (tmp_path / "log").open("wb") as log:
            tunnel = subprocess.Popen(
                ["bash", str(target.folder / "tunnel.sh"), str(port)], env=environment(login), stdout=log, stderr=log
            )
        try:
            until(lambda: answering(port) == first.port)
            taken = subprocess.run(
                ["bash", str(target.folder / "tunnel.sh"), str(port)],
                env=environment(login),
                capture_output=True,
                text=True,
                check=False,
            )
            assert taken.returncode == 1
            assert f"port {port} of this machine is taken: bash tunnel.sh ANOTHER_PORT" in taken.stderr
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/v1/chat/completions", '{"stream": true}', {"Authorization": f"Bearer {KEY}"})
            stream = connection.getresponse()
            assert stream.readline() == b"data: first\n"
            before = {process.pid for process in login.sessions()}
            here.serve("a", second.port)
            refresh(here.path / "results", "local", "a")
            until(lambda: answering(port) == second.port)
            # What was being answered goes on, and nobody had to log in again.
            first.go_on.set()
            assert stream.read() == b"\ndata: second\n\n"
            connection.close()
            assert before & {process.pid for process in login.sessions()}
            login.cut()
            until(lambda: answering(port) == second.port)
            here.serve("a", second.port, state="down", endpoint=None)
            refresh(here.path / "results", "local", "a")
            until(lambda: "no server is ready; waiting" in (tmp_path / "log").read_text())
        finally:
            tunnel.terminate()
            tunnel.wait()
        assert tunnel.returncode == 143, (tmp_path / "log").read_text()
        until(lambda: not login.sessions())


def test_the_probe_goes_through_the_tunnel(tmp_path: Path, login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe tries the command that ACCESS.md shows, asks nobody for a password, and says why it cannot."""
    here = site(tmp_path, login)
    monkeypatch.setenv("BERTH_SSH", f"ssh -F {login.config}")
    with running() as backend:
        here.serve("a", backend.port)
        target = target_of(here.config("a"), here.path, "a")
        found = {result.what.split()[0]: result for result in probe(target)}
        assert found["ssh"].status == "ok"
        assert "one token in" in found["ssh"].what
        login.config.with_name("empty").write_text("")
        monkeypatch.setenv("BERTH_SSH", f"ssh -F {login.config.with_name('empty')} -o StrictHostKeyChecking=yes")
        refused = {result.what.split()[0]: result for result in probe(target)}
        assert refused["ssh"].status == "WARN"
        assert "run tunnel.sh by hand" in refused["ssh"].remedy
        assert refused["direct"].status == "ok"


def environment(login: Login) -> dict[str, str]:
    return {**os.environ, "BERTH_SSH": f"ssh -F {login.config}", "INTERVAL_S": "0.2"}


def run(script: Path, login: Login, *arguments: str) -> str:
    done = subprocess.run(
        ["bash", str(script), *arguments], env=environment(login), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
