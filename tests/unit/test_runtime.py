"""A container as a command of this node: the exact arguments, environment, secrets and what stops it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from berth.container import SESSION_VARIABLES, podman_argv
from berth.errors import BerthError
from berth.recipes import load_recipe
from berth.resolve import Resolved, resolve
from berth.runtime import Command, Host, command

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
KEY = "do-not-show-this"
SECRETS = {"VLLM_API_KEY": KEY}
TOKEN = "0123456789abcdef" * 2
DIGEST = "sha256:" + "ab" * 32
PODMAN = ("podman", "--root=/local/me/storage", "--runroot=/local/me/run")


def resolved() -> Resolved:
    return resolve(
        load_recipe(ROOT / "config/recipes/vllm.yaml"),
        accelerator="cuda",
        version="0.9.1",
        platform_name="hops",
        model_path=Path("/models/m"),
        served_name="org/m",
        host="0.0.0.0",
        port=8000,
        cache_dir=Path("/scratch/cache"),
        files_dir=Path("/scratch/files"),
        name="berth-x-run1-4711-01234567",
    )


def host(runtime: str, environ: Mapping[str, str] | None = None, **settings: Any) -> Host:
    given = {"runtime": runtime, "modules": [], "options": [], "storage": "", **settings}
    return Host.here(given, "hops", {"PATH": "/usr/bin", "USER": "me"} if environ is None else environ)


def start(on: Host, scratch: Path, **more: Any) -> Command:
    image = {"digest": DIGEST, "path": "/images/v.sif"}
    return command(resolved().container, on, image, SECRETS, scratch=scratch, grace_s=5.0, token=TOKEN, **more)


def test_podman_marks_the_container_and_takes_what_was_staged(tmp_path: Path) -> None:
    """Beside the rendered command: the token by name and in a label, the staged digest, the site's options, no pull."""
    on = host("podman", storage="/local/me", options=["--volume=/opt/site:/opt/site:ro"])
    started = start(on, tmp_path)
    rendered = podman_argv(dataclasses.replace(resolved().container, digest=DIGEST), program=PODMAN)
    extra = [word for word in started.argv if word not in rendered]
    assert extra == [
        "--env=SPT_NOENV=1",
        "--env=BERTH_INSTANCE",
        "--pull=never",
        f"--label=berth.instance={TOKEN}",
        "--volume=/opt/site:/opt/site:ro",
    ]
    assert [word for word in rendered if word not in started.argv] == []
    assert started.argv[:4] == (*PODMAN, "run")
    assert started.env["BERTH_INSTANCE"] == TOKEN
    assert started.secret_env == SECRETS
    assert KEY not in " ".join([*started.argv, *started.env.values()])
    assert started.stop == (
        (*PODMAN, "stop", "--ignore", "--time=5", "berth-x-run1-4711-01234567"),
        (*PODMAN, "kill", "berth-x-run1-4711-01234567"),
        (*PODMAN, "rm", "--force", "--ignore", "berth-x-run1-4711-01234567"),
    )


def test_a_client_reads_commands_and_is_removed_at_once(tmp_path: Path) -> None:
    """Its standard input is passed in, an earlier client of its name is replaced, and it gets no time to end."""
    server, client = start(host("podman"), tmp_path), start(host("podman"), tmp_path, role="client")
    assert [word for word in client.argv if word not in server.argv] == ["--replace", "--interactive"]
    assert client.stop == (("podman", "rm", "--force", "--ignore", "--time=0", "berth-x-run1-4711-01234567"),)


def test_apptainer_unpacks_on_scratch_and_gets_key_and_token_hidden(tmp_path: Path) -> None:
    """Its own folders are on the node's disk and exist, and the secret is in no argument and no shown environment."""
    started = start(host("apptainer", options=["--bind=/opt/site"]), tmp_path)
    for name in ("APPTAINER_CACHEDIR", "APPTAINER_TMPDIR"):
        assert Path(started.env[name]).is_dir()
        assert Path(started.env[name]).is_relative_to(tmp_path)
    assert started.secret_env == {"APPTAINERENV_VLLM_API_KEY": KEY}
    assert started.env["APPTAINERENV_BERTH_INSTANCE"] == started.env["BERTH_INSTANCE"] == TOKEN
    assert KEY not in " ".join([*started.argv, *started.env.values()])
    assert TOKEN not in " ".join(started.argv)
    assert {"--env=SPT_NOENV=1", "--bind=/opt/site", "--fakeroot"} <= set(started.argv)
    assert started.argv.index("--bind=/opt/site") < started.argv.index("/images/v.sif")
    assert started.stop == ()


@pytest.mark.parametrize("runtime", ["podman", "apptainer"])
def test_containers_start_without_a_login_session(tmp_path: Path, runtime: str) -> None:
    """What belongs to a session that is over does not reach the runtime, what else the job has does."""
    environ = {**dict.fromkeys(SESSION_VARIABLES, "/run/user/1000"), "PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": "2"}
    started = start(host(runtime, environ), tmp_path)
    assert not set(SESSION_VARIABLES) & set(started.env)
    assert started.env["CUDA_VISIBLE_DEVICES"] == "2"


def test_modules_of_the_platform_decide_what_runs(tmp_path: Path) -> None:
    """What a login shell's `module` sets reaches every command; a stand-in for the site's function loads one path."""
    profile = """
echo a greeting
module() {
  shift
  for each in "$@"; do
    [ "$each" != no ] || { echo not there >&2; return 1; }
    export LOADED="$LOADED:$each"
  done
}
"""
    (tmp_path / ".bash_profile").write_text(profile)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": "/run/user/1"}
    on = host("podman", environ, modules=["podman/5.2", "cuda"])
    assert on.environ["LOADED"] == ":podman/5.2:cuda"
    assert "XDG_RUNTIME_DIR" not in on.environ
    assert not {"SHLVL", "_"} & set(on.environ)
    with pytest.raises(
        BerthError, match=r"hops\.yaml: modules: no: cannot be loaded on .*: not there\. Correct the names"
    ):
        host("podman", environ, modules=["no"])
