"""Records of a small experiment as real files, and the report that real code makes of them; for several test files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.coordinates import level_name, level_of
from berth.record import write_record
from berth.report import report
from berth.report_provenance import write_provenance
from berth.tidy import tidy_records, write_tidy

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
KINDS = ["output_throughput", "request_throughput", "ttft", "tpot", "itl", "e2el", "throughput_vs_latency"]
LEVELS = (1, 2, 4, 8, 16)


def record(run: int, concurrency: int, **changes: Any) -> dict[str, Any]:
    """A whole accepted record, different at every run and level; `changes` replace top-level parts."""
    rate = 100.0 * concurrency**0.7 + run + 1 / 3
    names = [f"{s}_{m}_ms" for s in ("mean", "median", "p99") for m in ("ttft", "tpot", "itl", "e2el")]
    return {
        "schema": 1,
        "point": {
            "experiment": "mine",
            "platform": "hops",
            "spec": "0123456789",
            "run": run,
            "concurrency": concurrency,
            "deployment": "scout-hops",
        },
        "spec": {
            "schema": 1,
            "model": {"name": "scout", "repo": "meta-llama/Scout", "revision": "c0ffee"},
            "image": {"reference": "vllm/vllm-openai:v0.9.1", "digest": "sha256:abc"},
            "serve": {
                "recipe": "vllm",
                "version": "0.9.1",
                "nodes": 1,
                "tensor_parallel": 4,
                "pipeline_parallel": 1,
                "args": {"max-model-len": 65536},
                "env": {},
            },
            "hardware": {"platform": "hops", "accelerator": "H100", "accelerators_per_node": 4},
            "benchmark": {"dataset": {"name": "sharegpt"}, "num_prompts": 1000, "seed": 1, "request_rate": "inf"},
        },
        "server": {
            "host": f"hops{run:02d}",
            "job_id": str(40 + run),
            "instance": 1,
            "image": {"reference": "vllm/vllm-openai:v0.9.1", "digest": "sha256:abc"},
            "version": "0.9.1",
            "command": ["podman", "run", "vllm/vllm-openai:v0.9.1", "--port=8000"],
            "timeline": [{"event": "process_started", "elapsed_s": 0.0}, {"event": "warmed_up", "elapsed_s": 412.5}],
        },
        "client": {
            "name": "vllm-bench",
            "version": "0.9.1",
            "mode": "warm",
            "command": ["vllm", "bench", "serve", "--max-concurrency", str(concurrency)],
            "cpu_s": 2.0,
            "cpu_fraction": 0.1,
        },
        "result": {
            "num_prompts": 1000,
            "completed": 1000,
            "failed": 0,
            "duration": 20.0 + concurrency,
            "total_input_tokens": 1000,
            "total_output_tokens": 182000,
            "request_throughput": rate / 182,
            "output_throughput": rate,
            "total_token_throughput": 2 * rate,
            **{name: (number + 1) * (10.0 + concurrency) + run / 7 for number, name in enumerate(names)},
        },
        "requests_file": None,
        "server_metrics": None,
        "validity": {"verdict": "accepted", "reasons": []},
        "failure": None,
        "wall": {
            "start": "2026-11-24T10:00:00.000+00:00",
            "end": "2026-11-24T10:01:00.000+00:00",
            "duration_s": 60.0,
            "client_duration_s": 20.0,
        },
        **changes,
    }


def flagged(code: str, message: str) -> dict[str, Any]:
    """The `validity` of a flagged point."""
    return {"verdict": "flagged", "reasons": [{"code": code, "message": message, "value": 0.57, "threshold": 0.05}]}


def crashed(cause: str, remedy: str = "Read the log.") -> dict[str, Any]:
    """What a record of a crashed point has in place of a measurement."""
    return {
        "result": None,
        "validity": {"verdict": "refused", "reasons": []},
        "failure": {"kind": "crash", "cause": cause, "remedy": remedy, "log": "logs/server/server.log"},
    }


def records() -> list[dict[str, Any]]:
    """Two runs of five levels: one point is flagged, and the last of run 2 crashed."""
    made = [record(run, level) for run in (1, 2) for level in LEVELS]
    made[1] |= {"validity": flagged("warm_cache", "57.0% of the prompt tokens came from the server's prefix cache.")}
    made[-1] |= crashed("The server was killed: it ran out of memory.")
    return made


def at_rate(run: int, rate: float) -> dict[str, Any]:
    """A whole record of a point at a rate, saturated at 3 requests per second."""
    made = record(run, 4)
    point = {key: value for key, value in made["point"].items() if key != "concurrency"}
    made["point"] = point | {"request_rate": rate}
    made["result"] |= {"request_throughput": min(rate, 3.0), "output_throughput": 50 * min(rate, 3.0)}
    made["spec"]["benchmark"]["request_rate"] = "swept"
    return made


def make_report(
    folder: Path, made: list[dict[str, Any]], decides: Mapping[str, Any] | None = None, **more: Any
) -> Path:
    """Write records, table, provenance and page below a folder; the page. `more` replaces fields of the experiment.

    `decides` is how its sweep stops and refines.
    """
    points, failures = [], []
    for each in made:
        point = each["point"]
        kind, paths = ("failures", failures) if each["failure"] else ("points", points)
        name = f"{point['platform']}-{point['spec']}-run{point['run']}-{level_name(level_of(point))}.json"
        path = folder / kind / name
        write_record(path, each, None)
        paths.append(path)
    table, origin, page = (folder / name for name in ("points.parquet", "provenance.json", "index.html"))
    asked = {"mine": decides} if decides else {}
    write_tidy(tidy_records(points, failures, (), {"hops": "Hops"}, asked=asked), table, folder / "points.csv")
    write_provenance(points, failures, origin)
    mine = {"name": "mine", "title": "Scout on Hops", "kinds": KINDS, "published": ["beltre2025/fig9"], **more}
    report(
        table=str(table),
        provenance=str(origin),
        published_dir=str(ROOT / "data" / "published"),
        experiments=[mine],
        profiles={"hops": "profiles/hops"},
        comparisons=[str(path) for path in sorted(folder.glob("*comparison.json"))],
        output=str(page),
    )
    return page
