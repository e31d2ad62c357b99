"""The file of a served deployment, and its API key."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from berth import services
from berth.errors import BerthError
from berth.services import Event, Instance, KubernetesPlace, Service

if TYPE_CHECKING:
    from pathlib import Path

READY = Instance("t3", "4711", "ready", "node7", "10.0.0.7", 8001, since=100.0, ends=7300.0)
SERVICE = Service(
    deployment="tiny",
    platform="hops",
    scheduler="slurm",
    served_model="tiny-llama",
    state="ready",
    key_file="/home/me/.config/berth/keys/hops/tiny",
    instances=(READY, Instance("t4", "4712", "queued")),
    endpoint=services.endpoint_of(READY),
    until=9000.0,
    restarts=2,
    history=(Event(99.0, "4700", "walltime", "The job ended.", "Nothing.", outage_s=0.0),),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Every field comes back, the parts included, and a deployment that was never served is None."""
    assert services.read(tmp_path, "hops", "tiny") is None
    services.write(tmp_path, SERVICE)
    assert services.read(tmp_path, "hops", "tiny") == SERVICE
    place = KubernetesPlace("", "genai", "berth-tiny", "berth-tiny", 8000, "https://tiny.example.gov")
    other = replace(SERVICE, deployment="other", kubernetes=place, endpoint=None, until=None)
    services.write(tmp_path, other)
    assert services.read_all(tmp_path, "hops") == (other, SERVICE)
    assert other.ready
    assert not replace(other, kubernetes=None).ready


def test_the_file_has_the_agreed_form(tmp_path: Path) -> None:
    """Others follow the file without Berth: its keys are those of docs/serve.md."""
    services.write(tmp_path, SERVICE)
    value = json.loads(services.path_of(tmp_path, "hops", "tiny").read_text())
    assert value["schema"] == 1
    assert value["endpoint"] == {
        "host": "node7",
        "address": "10.0.0.7",
        "port": 8001,
        "base_url": "http://10.0.0.7:8001/v1",
    }
    assert value["instances"][1] == {
        "id": "t4",
        "job_id": "4712",
        "state": "queued",
        "host": "",
        "address": "",
        "port": 0,
        "since": 0.0,
        "ends": None,
    }
    assert value["history"][0]["outage_s"] == 0.0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "state": "ready"}'])
def test_a_damaged_file_is_one_error(tmp_path: Path, text: str) -> None:
    """A truncated file, or one of another version, is named and not taken for a service."""
    path = services.path_of(tmp_path, "hops", "tiny")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(BerthError, match=str(path)):
        services.read(tmp_path, "hops", "tiny")


def test_a_key_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    """The second call finds the key of the first; file and folders are the user's alone."""
    environ = {"BERTH_KEYS": str(tmp_path / "keys")}
    path = services.key_file("hops", "tiny", "VLLM_API_KEY", environ)
    key = services.key_in(path)
    assert len(key) > 30
    assert services.key_in(services.key_file("hops", "tiny", "VLLM_API_KEY", environ)) == key
    assert path == tmp_path / "keys/hops/tiny"
    assert path.stat().st_mode & 0o777 == 0o600
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in (path.parent, path.parent.parent))
    assert services.key_path("hops", "tiny", {"HOME": "/home/me"}).as_posix() == "/home/me/.config/berth/keys/hops/tiny"


def test_a_key_of_the_environment_counts(tmp_path: Path) -> None:
    """The variable that the server reads replaces what the file holds, and stays when it is unset again."""
    environ = {"BERTH_KEYS": str(tmp_path)}
    services.key_file("hops", "tiny", "VLLM_API_KEY", environ)
    path = services.key_file("hops", "tiny", "VLLM_API_KEY", {**environ, "VLLM_API_KEY": "mine"})
    assert services.key_in(path) == "mine"
    assert services.key_in(services.key_file("hops", "tiny", "VLLM_API_KEY", environ)) == "mine"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """A key with an open mode is an error that says how to close it, and an empty one is none at all."""
    path = services.key_file("hops", "tiny", environ={"BERTH_KEYS": str(tmp_path)})
    path.chmod(0o640)
    with pytest.raises(BerthError, match="chmod 600"):
        services.key_file("hops", "tiny", environ={"BERTH_KEYS": str(tmp_path)})
    path.chmod(0o600)
    path.write_text("\n")
    with pytest.raises(BerthError, match="holds no API key"):
        services.key_in(path)
    with pytest.raises(BerthError, match="no API key can be read"):
        services.key_in(tmp_path / "none")
