"""Records of points that were never measured, for tests of what happens to points afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from berth.coordinates import parse_point
from berth.fsio import canonical_json, sha256_text
from berth.record import build_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

REQUESTS = {"itls": [[0.01, 0.02], [0.03]], "errors": ["", ""]}


def spec_of(platform: str) -> dict[str, Any]:
    """A definition of the form that berth.spec makes."""
    return {
        "schema": 1,
        "model": {"name": "scout", "repo": "meta-llama/Scout", "revision": "c0ffee"},
        "image": {"reference": "vllm:0.9.1", "digest": None},
        "serve": {"recipe": "vllm", "version": "0.9.1", "nodes": 1, "tensor_parallel": 4, "pipeline_parallel": 1},
        "hardware": {"platform": platform, "accelerator": "H100", "accelerators_per_node": 4},
        "benchmark": {"dataset": {"name": "sharegpt"}, "num_prompts": 2, "mode": "clean"},
    }


def key_of(experiment: str, platform: str, concurrency: int, run: int = 1) -> str:
    """The key of a point with that definition."""
    return f"{experiment}/{platform}/{sha256_text(canonical_json(spec_of(platform)))[:10]}/run{run}/c{concurrency}"


def write_point(results: Path, key: str, *, throughput: float = 100.0, sealed: bool = True, **custody: Any) -> Path:
    """Write record and requests file of a point below results/points; the record's path."""
    point = parse_point(key)
    assert point
    names = ("completed", "total_input_tokens", "total_output_tokens")
    statistics = {f"{s}_{m}_ms": 1.5 for s in ("mean", "median", "p99") for m in ("ttft", "tpot", "itl", "e2el")}
    record = build_record(
        point={
            "experiment": point.run.experiment,
            "platform": point.run.platform,
            "spec": point.run.spec,
            "run": point.run.run,
            "concurrency": point.level,
            "deployment": f"scout-{point.run.platform}",
        },
        spec=spec_of(point.run.platform),
        server={
            "host": f"{point.run.platform}15",
            "job_id": "42",
            "instance": 1,
            "image": {"reference": "vllm:0.9.1", "digest": None},
            "version": "0.9.1",
            "command": ["vllm", "serve"],
            "timeline": [],
        },
        client={
            "name": "vllm-bench",
            "version": "0.9.1",
            "mode": "warm",
            "command": [],
            "cpu_s": 1.0,
            "cpu_fraction": 0.1,
        },
        result={
            "num_prompts": 2,
            "failed": 0,
            "duration": 21.5,
            "request_throughput": throughput / 100,
            "request_goodput": None,
            "output_throughput": throughput,
            "total_token_throughput": 2 * throughput,
            **dict.fromkeys(names, 2),
            **statistics,
        },
        has_requests=True,
        server_metrics=None,
        validity={"verdict": "accepted", "reasons": []},
        wall={
            "start": "2026-01-01T00:00:00Z",
            "end": "2026-01-01T00:00:22Z",
            "duration_s": 22.0,
            "client_duration_s": 21.5,
        },
        custody={
            "model": {"manifest_sha256": custody.get("manifest_sha256"), "copy": "shared"},
            "dataset": {"sha256": custody.get("dataset_sha256")},
        }
        if sealed
        else None,
    )
    path = results / "points" / f"{key}.json"
    write_record(path, record, REQUESTS)
    return path


def flip(path: Path, at: int = -1) -> None:
    """Change one byte of a file, the middle one if none is named."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at < 0 else at] ^= 1
    path.write_bytes(data)
