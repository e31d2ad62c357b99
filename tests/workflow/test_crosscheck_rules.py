"""`cross_check` and `client_ceiling` through the real workflow, on stand-ins for vLLM and guidellm.

The stand-in for guidellm writes what the real one wrote once (tests/unit/samples); the real clients are in
tests/integration/test_clients_real.py and benchmarks/clients_compare.py.
"""

from __future__ import annotations

import csv
import gzip
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from workspace import Workspace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "slurm"))

from slurm_cluster import use_standin

from berth.clienttool import load_client
from berth.fsio import write_json

pytestmark = pytest.mark.workflow

CAPTURED = Path(__file__).resolve().parents[1] / "unit/samples/guidellm-0.8.1.point.json.gz"
REQUESTS = 5  # In what was captured.
GUIDELLM = """#!{python}
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--config") + 1]).parent
for name, text in json.loads(pathlib.Path({captured!r}).read_text()).items():
    (folder / name).write_text(text)
"""
# The image's Python: the prompts that vLLM would sample, and Python for all else.
PYTHON = """#!{python}
import json, os, sys
if "--samples" in sys.argv:
    asked, written = sys.argv[sys.argv.index("--samples") + 1 :]
    with open(asked) as file, open(written, "w") as samples:
        json.dump([[{{"prompt": "one", "prompt_len": 1, "output_len": 3}}] * {count} for _ in json.load(file)], samples)
else:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""
SETTINGS = 'cross_check={"clients": ["vllm", "guidellm"], "repeats": 2}'


def program(path: Path, text: str, **values: Any) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text.format(python=sys.executable, **values))
    path.chmod(0o755)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The experiment `local` on stand-ins, over two levels, with guidellm as if it had been staged."""
    work = Workspace.create(tmp_path / "workspace")
    use_standin(work, runs=1, levels=[1, 2], platform="local", accelerators=1)
    work.configure(
        lambda config: config["benchmarks"]["demo"].update(
            num_prompts=REQUESTS,
            validity={"min_duration_s": 0.1, "min_concurrency_fraction": 0.5, "client_ceiling_fraction": 0.001},
        )
    )
    folder = work.path / "standin/bin"
    captured = work.path / "standin/captured.json"
    captured.write_bytes(gzip.decompress(CAPTURED.read_bytes()))
    program(folder / "guidellm", GUIDELLM, captured=str(captured))
    program(folder / "python3", PYTHON, count=REQUESTS)
    tool = load_client(work.path / "config/clients/guidellm.yaml")
    image = tool.image("process")
    receipt = {"schema": 1, "reference": image["reference"], "digest": image["digest"], "path": str(folder.parent)}
    write_json(work.path / f"results/images/local/guidellm-{tool.version}.json", receipt)
    return work


def throughputs(paths: list[Path]) -> list[float]:
    return [json.loads(path.read_text())["result"]["output_throughput"] for path in paths]


def test_clients_are_compared_and_what_was_measured_is_kept(workspace: Workspace) -> None:
    """Each client has each level as often as asked; the table is of the records; a lost one alone is measured again."""
    arguments = ("cross_check", "--config", "experiment=local", SETTINGS)
    workspace.run(*arguments)
    folder = workspace.path / "results/cross_check/local/local"
    records = {path.relative_to(folder).as_posix(): path for path in folder.rglob("run*/c*.json")}
    names = [
        f"{client}/run{run}/c{level}.json" for client in ("guidellm", "vllm") for run in (1, 2) for level in (1, 2)
    ]
    assert sorted(records) == names
    rows = list(csv.DictReader((folder / "cross_check.csv").read_text().splitlines()))
    for level in (1, 2):
        theirs, first = (
            statistics.fmean(throughputs([records[f"{client}/run{run}/c{level}.json"] for run in (1, 2)]))
            for client in ("guidellm", "vllm")
        )
        (row,) = (
            row
            for row in rows
            if (row["concurrency"], row["client"], row["metric"]) == (str(level), "guidellm", "output throughput")
        )
        assert float(row["ratio"]) == pytest.approx(theirs / first)
        assert (row["runs"], row["refused"]) == ("2", "0")
    page = (folder / "cross_check.md").read_text()
    assert "guidellm" in page
    # Nothing of it is a point of a sweep.
    assert workspace.points() == workspace.spooled() == {}
    assert "Nothing to be done" in workspace.run(*arguments)

    before = {name: path.stat().st_mtime_ns for name, path in records.items()}
    records["vllm/run2/c1.json"].unlink()
    (folder / "cross_check.md").unlink()
    workspace.run(*arguments)
    changed = [name for name, path in records.items() if path.stat().st_mtime_ns != before[name]]
    assert changed == ["vllm/run2/c1.json"]
    workspace.leave_nothing()


def test_a_measured_ceiling_flags_the_points_above_its_part(workspace: Workspace) -> None:
    """`client_ceiling` writes what the client reached on this node, and the next sweep's points are held against it."""
    workspace.run("client_ceiling", "--config", "experiment=local")
    nodes = json.loads((workspace.path / "results/clients/local.json").read_text())["nodes"]
    ((ceiling,),) = (list(each.values()) for each in nodes.values())
    assert ceiling["requests_per_s"] > 0
    assert workspace.planned("client_ceiling", "--config", "experiment=local") == {"client_ceiling": 1, "total": 1}
    workspace.run("points")
    for path in workspace.points().values():
        record = json.loads(path.read_text())
        (reason,) = record["validity"]["reasons"]
        result = record["result"]
        part = result["request_throughput"] * ceiling["request_s"] + result["output_throughput"] * ceiling["token_s"]
        assert (record["validity"]["verdict"], reason["code"]) == ("flagged", "client_bound")
        assert reason["value"] == pytest.approx(part)
        assert record["client"]["ceiling_fraction"] == pytest.approx(part, abs=0.0001)
    assert len(workspace.points()) == 2
    workspace.leave_nothing()
