"""The real vLLM behind a real NGINX, asked by the examples and the probe as `access` writes and runs them."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from nginx_runs import connect, make_certificate, needs_nginx, proxied, site
from real_server import KEY

from berth.access import access
from berth.errors import BerthError
from berth.sockets import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from real_server import RealServer

pytestmark = [needs_nginx, pytest.mark.vllm, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of the person who runs the tests is read or written."""
    monkeypatch.setenv("BERTH_KEYS", str(tmp_path / "own-keys"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def test_vllm_behind_it_with_the_examples_as_written(
    vllm_server: RealServer, tmp_path: Path, certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """curl.sh, openai_example.py and the probe ask the real vLLM through NGINX, and tokens arrive one by one."""
    vllm_server.wait()
    here = site(tmp_path, certificate)
    here.serve("a", vllm_server.port, key=KEY, served_model="tiny")
    target = here.written("a")
    with proxied(target) as port:
        curl = run("bash", target.folder / "curl.sh")
        assert '"object":"chat.completion"' in curl.stdout.replace(" ", "")
        # One event for each token, and the last one; this model may say that it has ended before its 32 tokens.
        assert curl.stdout.count("data: ") > 3
        assert curl.stdout.rstrip().endswith("data: [DONE]")
        openai = run(str(vllm_server.python), target.folder / "openai_example.py")
        assert openai.stdout.strip()
        wrong = run("bash", target.folder / "curl.sh", check=False, VLLM_API_KEY="wrong")
        assert wrong.returncode == 22
        assert "401" in wrong.stderr
        # A reader that the machine lets wait finds several tokens at once, but never the whole answer.
        first, *others = stream_of(port, certificate)
        assert b"data: " in first
        assert b"[DONE]" not in first
        assert b"[DONE]" in others[-1]
        report = tmp_path / "report.txt"
        access(here.config("a"), here.path, report)
        lines = report.read_text().splitlines()
        assert sum(line.startswith("ok") and "one token in" in line for line in lines) == 2, lines
    # NGINX is gone: that way is told, and the direct one is enough.
    access(here.config("a"), here.path, report)
    assert "WARN  NGINX https://localhost" in report.read_text()
    # Where it was, nobody answers any more.
    here.serve("a", free_port("127.0.0.1", 20000, 29999), key=KEY, served_model="tiny")
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
    body = {"model": "tiny", "stream": True, "max_tokens": 400, "messages": [{"role": "user", "content": "Hello"}]}
    body["ignore_eos"] = True
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    pieces = []
    while piece := answer.read1():
        pieces.append(piece)
    connection.close()
    return pieces
