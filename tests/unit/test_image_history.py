"""One spec, one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from berth.coordinates import RunId
from berth.errors import BerthError
from berth.image_history import require_same_image
from berth.record import build_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

RUN = RunId("fig9", "eldorado", "0123456789", 2)


def measured(results: Path, folder: str, digest: str | None) -> Path:
    """A record of the first run of the spec, measured with an image of this digest."""
    path = results / folder / "fig9/eldorado/0123456789/run1/c16.json"
    record = build_record(
        point={
            "experiment": "fig9",
            "platform": "eldorado",
            "spec": "0123456789",
            "run": 1,
            "concurrency": 16,
            "deployment": "scout",
        },
        spec={"schema": 1},
        server={
            "host": "node1",
            "job_id": None,
            "instance": 1,
            "image": {"reference": "r.example/vllm:1", "digest": digest},
            "version": None,
            "command": [],
            "timeline": [],
        },
        client={
            "name": "vllm-bench",
            "version": None,
            "mode": "warm",
            "command": [],
            "cpu_s": None,
            "cpu_fraction": None,
        },
        result={},
        has_requests=False,
        server_metrics=None,
        validity={"verdict": "accepted", "reasons": []},
        wall={"start": "", "end": "", "duration_s": 1.0, "client_duration_s": 1.0},
    )
    write_record(path, record, None)
    return path


@pytest.mark.parametrize("folder", ["points", "spool"])
def test_a_run_goes_on_with_the_image_that_its_spec_began_with(tmp_path: Path, folder: str) -> None:
    """A point of the spec that was measured with another digest is named with both and with the way out."""
    path = measured(tmp_path, folder, "sha256:a")
    require_same_image(tmp_path, RUN, "sha256:a")
    with pytest.raises(BerthError) as caught:
        require_same_image(tmp_path, RUN, "sha256:b")
    for part in (str(path), "r.example/vllm:1", "sha256:a", "sha256:b", "recipe"):
        assert part in str(caught.value)
    require_same_image(tmp_path, RunId("fig9", "eldorado", "9876543210", 2), "sha256:b")


def test_a_point_that_does_not_know_its_digest_decides_nothing(tmp_path: Path) -> None:
    """A point measured elsewhere may have no digest in its record."""
    measured(tmp_path, "points", None)
    require_same_image(tmp_path, RUN, "sha256:b")
