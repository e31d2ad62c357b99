"""A real cluster of Kubernetes, where KUBECONFIG names the one that tests/kubernetes/cluster.sh makes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The workspace of the workflow's tests and the images of the integration tests; test files are no package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from cluster_site import BRIDGE, Site, make_site
from server_image import have_image, have_standin, kept_registry
from store_server import pod_store

from berth.checkup import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

MAKE = 'tests/kubernetes/cluster.sh build (once, 20 to 45 minutes), eval "$(tests/kubernetes/cluster.sh up)"'


@pytest.fixture(scope="session")
def cluster() -> str:
    """The version of the cluster; every test that needs one is skipped where there is none."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip(f"no cluster of Kubernetes: {MAKE}")
    for program in ("helm", "kubectl"):
        if not ask(program, "version", "--client" if program == "kubectl" else "--short").good:
            pytest.skip(f"{program} is not on PATH: tools/install-helm.sh")
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        pytest.skip(f"KUBECONFIG names another cluster than tests/kubernetes/cluster.sh makes: {MAKE}")
    answer = ask("kubectl", "get", "--raw=/version")
    assert answer.good, answer.complaint
    return answer.out


@pytest.fixture(scope="session")
def site(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A namespace of its own, the registry with the server's image, a store that pods reach, and volumes."""
    del cluster
    registry = kept_registry()
    folder = tmp_path_factory.mktemp("site")
    try:
        image, standin = have_image(registry), have_standin(registry)
        with pod_store(folder / "store") as store, make_site(folder, image, standin, store) as site:
            yield site
    finally:
        registry.stop()
