"""What is known to fail is told before the first job starts."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth.config import Registry
from berth.errors import BerthError
from berth.parse import load_config
from berth.plan import make_plan
from berth.preflight import preflight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.config import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped configuration, and no credential in sight."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    for name in ("HF_TOKEN", "HF_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def config_of(root: Path, **changes: Any) -> Config:
    raw = yaml.safe_load((root / "config/config.yaml").read_text())
    return load_config({**raw, **changes}, root)


def on_hops(root: Path, weights_bytes: int, endpoint_url: str = "https://s3.example.gov") -> Config:
    config = config_of(root, platform="hops", select=["fig9"])
    hops = config.platforms["hops"]
    hops = replace(hops, models_dir=str(root / "models"), store=replace(hops.store, endpoint_url=endpoint_url))
    model = replace(config.models["llama-4-scout"], weights_bytes=weights_bytes)
    return replace(
        config,
        platforms={**config.platforms, "hops": hops},
        models={**config.models, "llama-4-scout": model},
    )


def error_of(config: Config, root: Path) -> str:
    with pytest.raises(BerthError) as caught:
        preflight(make_plan(config, root))
    return str(caught.value)


def test_local_platform_needs_nothing_from_outside(root: Path) -> None:
    """The embedded defaults pass on a machine with neither credentials nor internet."""
    preflight(make_plan(config_of(root), root))


def test_disk_with_too_little_room_for_the_model(root: Path) -> None:
    """A model that does not fit on the disk is told with what is needed."""
    text = error_of(on_hops(root, 10**18), root)
    assert "llama-4-scout" in text
    assert "free" in text


def test_gated_model_without_a_token(root: Path) -> None:
    """A gated model names the variable and where to accept the licence."""
    text = error_of(on_hops(root, 1), root)
    assert "config/models/llama-4-scout.yaml: gated" in text
    assert "HF_TOKEN" in text


def test_unreachable_hub(root: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that does not answer is named with what to do; the token is not shown."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    text = error_of(on_hops(root, 1), root)
    assert f"http://127.0.0.1:{closed_port} cannot be reached" in text
    assert "hf_secret_of_the_test" not in text


def test_missing_store_credentials(root: Path, open_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing keys of the store are named by their variables."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{open_port}")
    text = error_of(on_hops(root, 1), root)
    assert "config/platforms/hops.yaml: store: no credentials" in text
    assert "AWS_ACCESS_KEY_ID" in text


def test_unreachable_store(root: Path, open_port: int, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is named by its key in the platform file; the secret is not shown."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{open_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws_secret_of_the_test")
    text = error_of(on_hops(root, 1, f"http://127.0.0.1:{closed_port}"), root)
    assert f"store.endpoint_url: http://127.0.0.1:{closed_port} cannot be reached" in text
    assert "aws_secret_of_the_test" not in text


def test_port_range_with_no_free_port(root: Path, open_port: int) -> None:
    """A range whose only port is taken is named with its key."""
    config = config_of(root)
    local = replace(config.platforms["local"], ports=(open_port, open_port))
    text = error_of(replace(config, platforms={**config.platforms, "local": local}), root)
    assert "config/platforms/local.yaml: server.ports" in text
    assert f"no port from {open_port} to {open_port} is free" in text


@pytest.fixture
def reached(root: Path, open_port: int, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Hops with everything that is asked before its images."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{open_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws_secret_of_the_test")
    return on_hops(root, 1, f"http://127.0.0.1:{open_port}")


def changed(config: Config, **changes: Any) -> Config:
    hops = replace(config.platforms["hops"], **changes)
    return replace(config, platforms={**config.platforms, "hops": hops})


@pytest.mark.parametrize("runtime", ["podman", "apptainer"])
def test_container_images_pass_under_container_runtimes(root: Path, reached: Config, runtime: Any) -> None:
    """A platform whose runtime starts containers has nothing in the way."""
    preflight(make_plan(changed(reached, runtime=runtime), root))


def test_an_image_that_the_runtime_cannot_start(root: Path, reached: Config) -> None:
    """A container image needs a container runtime; the key, the deployment and what is allowed are named."""
    text = error_of(changed(reached, runtime="process"), root)
    assert "config/platforms/hops.yaml: runtime: process" in text
    assert "scout-hops" in text
    assert "podman or apptainer" in text


def test_the_site_registry_must_answer_unless_the_image_is_staged(
    root: Path, reached: Config, closed_port: int
) -> None:
    """A registry that does not answer is named with its key; staged images need none."""
    config = changed(reached, registry=Registry(host=f"127.0.0.1:{closed_port}"))
    assert "config/platforms/hops.yaml: registry.host" in error_of(config, root)
    for folder in ("mirrored", "images"):
        path = root / config.results / folder / "hops" / "vllm-0.9.1.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    preflight(make_plan(config, root))


def test_a_cluster_that_does_not_answer_is_told_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes is asked before the hub, the store and the disk are looked at; without its programs that is said."""
    model = root / "config/models/llama-4-scout-w4a16.yaml"
    model.write_text(model.read_text().replace("revision: null", f"revision: {'a' * 40}"))
    monkeypatch.setenv("PATH", str(root))
    text = error_of(config_of(root, platform="goodall", select=["fig10"]), root)
    assert text.startswith("Kubernetes: helm is not on PATH")


def test_what_the_chart_cannot_run_is_told(root: Path) -> None:
    """A deployment that pods cannot run is refused with the reason, and so is the upstream chart."""
    model = root / "config/models/llama-4-scout-w4a16.yaml"
    model.write_text(model.read_text().replace("revision: null", f"revision: {'a' * 40}"))
    platform = root / "config/platforms/goodall.yaml"
    platform.write_text(platform.read_text().replace("kubernetes:\n  name", "kubernetes:\n  chart: /elsewhere\n  name"))
    with pytest.raises(BerthError, match=r"kubernetes\.chart: Berth measures and serves with its own chart"):
        preflight(make_plan(config_of(root, platform="goodall", select=["fig10"]), root))


def test_nothing_missing_asks_for_nothing(root: Path) -> None:
    """Where no point is missing, neither disk nor hub is looked at."""
    preflight(make_plan(replace(on_hops(root, 10**18), partial=True), root))
