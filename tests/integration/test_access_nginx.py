"""The configuration that `access` writes, in a real NGINX before servers of the tests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from access_cases import KEY, MODEL, Site, running
from nginx_runs import connect, get, make_certificate, needs_nginx, post, proxied, site, until

from berth.access import refresh
from berth.access_probe import probe
from berth.access_target import target_of
from berth.services import KubernetesPlace

if TYPE_CHECKING:
    from berth.checkup import Result

pytestmark = needs_nginx


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of the person who runs the tests is read or written."""
    monkeypatch.setenv("BERTH_KEYS", str(tmp_path / "own-keys"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def test_streams_over_tls_and_keeps_the_key(tmp_path: Path, certificate: Path) -> None:
    """The first token is read before the second is sent; the key arrives as it was sent and gets into no log."""
    here = site(tmp_path, certificate)
    with running() as backend:
        here.serve("a", backend.port)
        target = here.written("a")
        with proxied(target) as port:
            connection = connect(port, certificate)
            body = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "x" * 2**21}]})
            connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
            answer = connection.getresponse()
            assert answer.readline() == b"data: first\n"
            assert not backend.go_on.is_set()
            backend.go_on.set()
            assert answer.read() == b"\ndata: second\n\n"
            connection.close()
            assert backend.seen[0]["Authorization"] == f"Bearer {KEY}"
            assert get(port, "/health", certificate) == 200
            assert backend.seen[-1]["path"] == "/health"
            asked = len(backend.seen)
            # vLLM asks for no key there, and would complete.
            assert get(port, "/invocations", certificate) == 404
            assert get(port, "/v1/../metrics", certificate) == 404
            assert len(backend.seen) == asked
            # HTTP is refused on the port of HTTPS.
            assert get(port, "/v1/models") == 400
            # The probe verifies the certificate and the key, and says which of them is wrong.
            assert [result.status for result in probed(here, "NGINX")] == ["ok"]
            backend.key = "another"
            (refused,) = probed(here, "NGINX")
            assert (refused.status, "this key is not the server's" in refused.remedy) == ("FAIL", True)
            here.configure({"nginx": {key: value for key, value in here.access["nginx"].items() if key != "ca_file"}})
            (untrusted,) = probed(here, "NGINX")
            assert (untrusted.status, "access.nginx.ca_file" in untrusted.remedy) == ("FAIL", True)
            # It listens where it was told to, and nowhere else.
            open_ports = [each.laddr for each in psutil.net_connections("tcp") if each.status == "LISTEN"]
            assert {address.ip for address in open_ports if address.port == port} == {"127.0.0.1"}
        logs = "".join(path.read_text() for path in target.run_dir.glob("*.log"))
    assert "/v1/chat/completions 200" in logs
    assert KEY not in logs
    assert oct(target.run_dir.stat().st_mode & 0o777) == "0o700"


def probed(here: Site, way: str) -> list[Result]:
    """What the probe says of one way in."""
    found = probe(target_of(here.config("a"), here.path, "a"))
    return [result for result in found if result.what.startswith(way)]


def test_follows_a_server_that_moves_and_says_when_there_is_none(tmp_path: Path) -> None:
    """The reload command follows a move; a dead server is 502 in OpenAI's form; one that is back answers at once."""
    here = site(tmp_path)
    folder = here.path / "results/access/local/a"
    here.configure(here.access | {"reload": ["bash", str(folder / "nginx.sh"), "reload"]})
    with running() as first, running() as second:
        here.serve("a", first.port)
        target = here.written("a")
        with proxied(target) as port:
            assert post(port)[1]["port"] == first.port
            here.serve("a", second.port)
            refresh(here.path / "results", "local", "a")
            until(lambda: post(port)[1].get("port") == second.port)
            dead = second.port
            # A worker from before the reload may still lead to the first.
            for server in (first.server, second.server):
                server.shutdown()
                server.server_close()
            status, answer = post(port)
            assert status == 502
            assert answer["error"]["type"] == "service_unavailable"
            with running(dead) as again:
                # With one server only, a failure takes nothing out.
                until(lambda: post(port)[1].get("port") == again.port)
            here.serve("a", 1, state="down", endpoint=None)
            refresh(here.path / "results", "local", "a")
            until(lambda: "127.0.0.1:9 down" in (folder / "upstream.conf").read_text() and post(port)[0] == 502)


def test_its_own_nginx_follows_by_itself(tmp_path: Path) -> None:
    """`nginx.sh run` reads the upstream again when it changes, and ends NGINX when it is ended."""
    here = site(tmp_path)
    with running() as first, running() as second:
        here.serve("a", first.port)
        target = here.written("a")
        port = int(json.loads((target.folder / "access.json").read_text())["port"])
        with (tmp_path / "run.log").open("wb") as log:
            run = subprocess.Popen(
                ["bash", str(target.folder / "nginx.sh"), "run"],
                env={**os.environ, "INTERVAL_S": "0.1"},
                stdout=log,
                stderr=log,
            )
        try:
            # `nginx -t` listens for a moment too.
            until((target.run_dir / "followed").exists)
            assert post(port)[1]["port"] == first.port
            here.serve("a", second.port)
            refresh(here.path / "results", "local", "a")
            until(lambda: post(port)[1].get("port") == second.port)
        finally:
            run.terminate()
            assert run.wait() == 143, (tmp_path / "run.log").read_text()
        until(lambda: not answers(port))
    assert f"the server has moved: server 127.0.0.1:{second.port}" in (tmp_path / "run.log").read_text()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def test_a_dead_replica_is_taken_out(tmp_path: Path) -> None:
    """Both replicas answer; when one dies every request is answered by the other, and none of them is sent twice."""
    here = site(tmp_path, deployments=2)
    with running() as first, running() as second:
        here.serve("a", first.port)
        here.serve("b", second.port)
        with proxied(here.written("a,b")) as port:
            assert {post(port)[1]["port"] for _ in range(8)} == {first.port, second.port}
            second.server.shutdown()
            second.server.server_close()
            before = len(first.seen)
            statuses = many(port, 20)
            assert statuses == [(200, first.port)] * 20
            assert len(first.seen) == before + 20


def many(port: int, count: int) -> list[tuple[int, int]]:
    """Status and port of the answering server for requests side by side."""
    found: list[tuple[int, int]] = []

    def ask() -> None:
        status, answer = post(port)
        found.append((status, answer.get("port", 0)))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_post_that_was_sent_is_not_sent_again(tmp_path: Path) -> None:
    """A server that takes a completion and dies costs that request alone: its replica does not compute it again."""
    here = site(tmp_path, deployments=2)
    with running() as first, socket.create_server(("127.0.0.1", 0)) as dying:
        here.serve("a", first.port)
        here.serve("b", dying.getsockname()[1])

        def take_and_close() -> None:
            connection, _ = dying.accept()
            connection.recv(65536)
            connection.close()

        thread = threading.Thread(target=take_and_close)
        thread.start()
        with proxied(here.written("a,b")) as port:
            statuses = [post(port)[0] for _ in range(4)]
        thread.join()
    assert sorted(statuses) == [200, 200, 200, 502]
    assert len(first.seen) == 3


def test_a_route_beside_a_node(tmp_path: Path, certificate: Path) -> None:
    """A node's HTTP and a Route's verified HTTPS are one upstream; one with another certificate is taken out."""
    here = site(tmp_path, deployments=2)
    scratch = Path(tempfile.mkdtemp(prefix="berth-", dir="/tmp"))
    with running() as node, running(certificate=certificate) as route:
        here.serve("a", node.port)
        for host, answering in (("localhost", {node.port, route.port}), ("127.0.0.1", {node.port})):
            here.scratch(str(scratch), network={"ca_bundle": str(certificate / "cert.pem")})
            place = KubernetesPlace("", "genai", "b", "b", 80, f"https://{host}:{route.port}")
            here.serve("b", 0, endpoint=None, instances=(), kubernetes=place)
            with proxied(here.written("a,b")) as port:
                # A failed handshake costs one request, which may have been sent as far as NGINX knows.
                found = [post(port) for _ in range(8)]
                assert [status for status, _ in found].count(502) == 2 - len(answering)
                assert {answer["port"] for status, answer in found if status == 200} == answering
        assert route.seen[0]["Host"] == f"localhost:{route.port}"
        assert route.seen[0]["Authorization"] == f"Bearer {KEY}"
    shutil.rmtree(scratch)
