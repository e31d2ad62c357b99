"""A container as a command of this node: environment, secrets and what stops it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from berth.container import SESSION_VARIABLES
from berth.recipes import load_recipe
from berth.resolve import Resolved, resolve
from berth.runtime import command

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"VLLM_API_KEY": "do-not-show-this"}


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
    )


def test_apptainer_unpacks_on_scratch_and_gets_the_key_hidden(tmp_path: Path) -> None:
    """Its own folders are on the node's disk and exist, and the secret is in no argument and no shown environment."""
    started = command(
        resolved().container, "apptainer", {"path": "/images/v.sif"}, SECRETS, scratch=tmp_path, grace_s=5.0
    )
    for name in ("APPTAINER_CACHEDIR", "APPTAINER_TMPDIR"):
        assert Path(started.env[name]).is_dir()
        assert Path(started.env[name]).is_relative_to(tmp_path)
    assert started.secret_env == {"APPTAINERENV_VLLM_API_KEY": "do-not-show-this"}
    assert "do-not-show-this" not in " ".join([*started.argv, *started.env.values()])
    assert started.stop == ()


def test_containers_start_without_a_login_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to a session that is over does not reach the runtime; Podman's container is ended by name."""
    for name in SESSION_VARIABLES:
        monkeypatch.setenv(name, "/run/user/1000")
    for runtime in ("podman", "apptainer"):
        started = command(resolved().container, runtime, {"path": "/i"}, SECRETS, scratch=tmp_path, grace_s=5.0)
        assert not set(SESSION_VARIABLES) & set(started.env)
        assert bool(started.stop) == (runtime == "podman")
