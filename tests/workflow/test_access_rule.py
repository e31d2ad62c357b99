"""`snakemake access` as a person types it, with secrets in the environment that must get nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from access_cases import KEY, MODEL, running
from leaks import SECRETS, Watch, files_with
from workspace import Workspace

from berth import services
from berth.services import Instance, Service, endpoint_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.workflow


def serve(workspace: Workspace, port: int, keys: Path) -> None:
    """The state that `serve` would have written for a server of this machine."""
    keys.mkdir(mode=0o700)
    key_file = keys / "tiny-local"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    instance = Instance("t1", "1", "ready", host="localhost", address="127.0.0.1", port=port)
    service = Service("tiny-local", "local", "local", MODEL, "ready", str(key_file), (instance,), endpoint_of(instance))
    services.write(workspace.path / "results", service)


def test_access_writes_and_tries_and_gives_no_secret_away(tmp_path: Path) -> None:
    """The ways in are written and tried, nothing else is run, and no secret gets into a file, output or argument."""
    watch = Watch(tmp_path / "fresh", [*SECRETS.values(), KEY])
    workspace = Workspace.create(watch.folder)
    environ = {**SECRETS, "BERTH_KEYS": str(tmp_path / "keys")}
    with watch, running() as backend:
        serve(workspace, backend.port, tmp_path / "keys")
        shown = workspace.run("access", "--config", "deployment=tiny-local", **environ)
    assert f"ok    direct http://127.0.0.1:{backend.port}/v1 (tiny-local): one token in" in shown
    assert "WARN  NGINX http://127.0.0.1:19443/v1" in shown
    assert {post["Authorization"] for post in backend.seen} == {f"Bearer {KEY}"}
    written = {path.name for path in (workspace.path / "results/access/local/tiny-local").glob("[!.]*")}
    assert {"ACCESS.md", "curl.sh", "openai_example.py", "server.conf", "nginx.conf", "nginx.sh"} < written
    assert not (workspace.path / "results/models").exists()
    assert watch.shown == set()
    assert not [value for value in watch.values if value in shown]
    assert files_with(workspace.path, watch.values) == []
