"""The configuration that `access` writes, in a real NGINX: before the real vLLM, and before servers of the tests."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from access_cases import KEY, MODEL, Site, running
from test_serve_vllm import environment_python, launch

from berth.access import access, refresh
from berth.access_probe import probe
from berth.access_target import target_of
from berth.errors import BerthError
from berth.processes import new_token
from berth.ready import Checks, wait_until_ready
from berth.serve import serve
from berth.services import KubernetesPlace
from berth.sockets import free_port
from berth.tinymodel import generate_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from berth.access_target import Target
    from berth.checkup import Result

PATH = f"{os.environ['PATH']}:/usr/sbin"
pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path=PATH) is None or shutil.which("openssl") is None,
    reason="needs nginx and openssl: on Debian apt-get install nginx-light openssl (tools/install-test-packages.sh)",
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for localhost that signs itself."""
    folder = tmp_path_factory.mktemp("certificate")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    argv += ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of the person who runs the tests is read or written."""
    monkeypatch.setenv("BERTH_KEYS", str(tmp_path / "own-keys"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def site(tmp_path: Path, certificate: Path | None = None, **more: Any) -> Site:
    """A site whose NGINX listens on a free port of loopback, with TLS where there is a certificate."""
    nginx = {"name": "localhost", "port": free_port("127.0.0.1", 20000, 29999), "bind": "127.0.0.1"}
    if certificate:
        files = {"certificate": "cert.pem", "key": "key.pem", "ca_file": "cert.pem"}
        nginx |= {name: str(certificate / file) for name, file in files.items()}
    return Site.create(tmp_path / "site", {"nginx": nginx}, **more)


def script(target: Target, word: str) -> None:
    """Run nginx.sh as a person does."""
    # Not captured: NGINX keeps what it inherits open.
    with (target.folder / "nginx.log").open("ab") as log:
        done = subprocess.run(["bash", str(target.folder / "nginx.sh"), word], stdout=log, stderr=log, check=False)
    assert done.returncode == 0, (target.folder / "nginx.log").read_text()


@contextmanager
def proxied(target: Target) -> Iterator[int]:
    """NGINX as nginx.sh starts it, for the block; its port."""
    script(target, "test")
    script(target, "start")
    pid = int((target.run_dir / "nginx.pid").read_text())
    try:
        yield int(json.loads((target.folder / "access.json").read_text())["port"])
    finally:
        script(target, "stop")
        until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def until(condition: Callable[[], Any]) -> None:
    """Wait for what must happen; a test that waits in vain fails by pytest's time limit."""
    while not condition():
        time.sleep(0.05)


def connect(port: int, certificate: Path | None = None) -> http.client.HTTPConnection:
    if certificate is None:
        return http.client.HTTPConnection("localhost", port, timeout=60)
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    return http.client.HTTPSConnection("localhost", port, timeout=60, context=context)


def post(port: int, certificate: Path | None = None, **body: Any) -> tuple[int, Any]:
    """Status and answer of a completion through NGINX."""
    connection = connect(port, certificate)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": MODEL} | body), headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data)


def get(port: int, path: str, certificate: Path | None = None) -> int:
    connection = connect(port, certificate)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


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


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_behind_it_with_the_examples_as_written(
    tmp_path: Path, certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """curl.sh, openai_example.py and the probe ask the real vLLM through NGINX, and tokens arrive one by one."""
    python = environment_python()
    generate_model(dest=tmp_path / "tiny", manifest_path=tmp_path / "manifest.json", seed=1)
    here = site(tmp_path, certificate)
    plan = launch(tmp_path / "tiny", tmp_path, key=KEY)
    with serve(plan, log_path=tmp_path / "log", token=new_token(), grace_s=20, known_failures=()) as server:
        wait_until_ready(server, api_key=KEY, checks=Checks(), stall_s=300, request_timeout_s=10, poll_s=0.1)
        here.serve("a", plan.port, served_model="tiny")
        target = here.written("a")
        with proxied(target) as port:
            curl = run("bash", target.folder / "curl.sh")
            assert '"object":"chat.completion"' in curl.stdout.replace(" ", "")
            # One event for each token, and the last one.
            assert curl.stdout.count("data: ") > 10
            assert curl.stdout.rstrip().endswith("data: [DONE]")
            openai = run(str(python), target.folder / "openai_example.py")
            assert openai.stdout.strip()
            wrong = run("bash", target.folder / "curl.sh", check=False, VLLM_API_KEY="wrong")
            assert wrong.returncode == 22
            assert "401" in wrong.stderr
            pieces = stream_of(port, certificate)
            assert len(pieces) > 10
            report = tmp_path / "report.txt"
            access(here.config("a"), here.path, report)
            lines = report.read_text().splitlines()
            assert sum(line.startswith("ok") and "one token in" in line for line in lines) == 2, lines
        # NGINX is gone: that way is told, and the direct one is enough.
        access(here.config("a"), here.path, report)
        assert "WARN  NGINX https://localhost" in report.read_text()
    with pytest.raises(BerthError, match="No way into a works from here"):
        access(here.config("a"), here.path, report)
    for told in (report.read_text(), capsys.readouterr().out, curl.stdout, openai.stdout, openai.stderr):
        assert KEY not in told


def run(*argv: Any, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run an example as it is written, with nothing in the environment that would help it."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environ}
    done = subprocess.run([str(word) for word in argv], env=env, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def stream_of(port: int, certificate: Path) -> list[bytes]:
    """What single reads of the socket bring of a streamed completion."""
    connection = connect(port, certificate)
    body = {"model": "tiny", "stream": True, "max_tokens": 24, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    pieces = []
    while piece := answer.read1():
        pieces.append(piece)
    connection.close()
    return pieces
