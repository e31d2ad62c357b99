"""What holds for all tests: how they are spread over pytest's workers."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from real_server import shared_server
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from real_server import RealServer

# A shell ignores INT in what it starts in the background, and every process of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests by file, or by file and the beginning of their name. A real server and its client take 3 GB of memory and more
# than a core: two groups start them one after the other, so that two run at a time whatever the number of workers.
# They take the longest and are begun first.
REAL = (
    (
        # The first server of each group looks at all models, 20 CPU seconds, and the next find what it saw once it was
        # ready: the server of two ranks, each of which would look, is not the first.
        "test_recipe_vllm",
        "test_serve_vllm",
        "test_nodes_vllm",
        "test_slurm_vllm",
        "test_sweep_podman::test_the_real_vllm",
        "test_sweep_apptainer::test_the_real_vllm",
        # One cluster for all of them, where there is one.
        "test_cluster_vllm",
        "test_cluster_serve",
        "test_cluster_sweep",
        "test_cluster_failures",
    ),
    (
        # These share one measured workspace.
        "test_only_missing",
        "test_air_gap",
        "test_custody_rule",
        "test_validity_vllm",
        "test_render_rule::test_rendered_scripts_run_by_hand",
        # These share one server, which lives until the worker's end: they are the last of their group.
        "test_client_vllm",
        "test_access_vllm",
        "test_litellm",
    ),
)
# What else is long, so that no worker has one of them left at the end. Most of it waits rather than computes.
LONG = (
    "test_slurm_sweeps",
    "test_slurm_serve",
    "test_slurm_accounting",
    "test_slurm_nodes",
    "test_slurm_before",
    "test_nodes_standin",
    "test_faults_job",
    "test_slurm_podman",
    "test_sweep_podman",
    "test_images",
    "test_store",
    "test_hub",
    "test_serve_local",
    "test_slurm_private",
    "test_sweep_apptainer",
    "test_nodes_podman",
    "test_container_sweep",
)
# A cluster with accounting takes long to bring up.
TOGETHER = {"test_slurm_refusals": "test_slurm_accounting"}


def group_of(nodeid: str) -> tuple[int, int, str]:
    """Place of a test's group among all groups, place in the group, and the group's name."""
    path, _, rest = nodeid.partition("::")
    stem = path.rpartition("/")[2].removesuffix(".py")
    for place, names in enumerate(REAL):
        for within, name in enumerate(names):
            if stem == name or ("::" in name and f"{stem}::{rest}".startswith(name)):
                return place, within, f"real servers {place}"
    stem = TOGETHER.get(stem, stem)
    return len(REAL) + (LONG.index(stem) if stem in LONG else len(LONG)), 0, stem


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups in an order that leaves no worker idle at the end, and all of a group in one place."""
    items.sort(key=lambda item: group_of(item.nodeid)[:2])


class Grouped(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types for its schedulers.
    """One worker for all of a group. xdist's own groups (3.8) are not seen by pytest 9.2, which keeps ids elsewhere."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)[2]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups where they are asked for (--dist loadgroup)."""
    return Grouped(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The real vLLM server that several tests share; it may still be loading."""
    with shared_server(tmp_path_factory.mktemp("vllm")) as server:
        yield server
