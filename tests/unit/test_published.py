"""Published sets: the paper's numbers, and what a user's own set is checked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from berth.columns import COLUMNS
from berth.errors import BerthError
from berth.frames import read_published
from berth.published import find_figure, read_set

PUBLISHED = Path(__file__).parents[2] / "data" / "published"
PAPER = PUBLISHED / "beltre2025"
LEVELS = [2**power for power in range(11)]

# The result files of the paper's repository at 14c62e2, restated here curve by curve, so that no cell can change.
SCOUT = "103.30 192.03 336.32 548.38 844.66 1186.30 1820.15 2715.97 3622.24 4134.42 4313.11"
CURVES = {
    ("fig9", "hops", 1, "hops15"): SCOUT,
    ("fig9", "hops", 2, "hops15"): (
        "103.08 191.95 336.26 545.44 844.50 1188.28 1819.36 2736.95 3616.07 4168.74 4308.91"
    ),
    ("fig9", "eldorado", 1, "eldo1002"): (
        "47.96 96.42 182.09 321.58 484.37 529.59 785.61 1167.82 1605.42 1787.02 1898.76"
    ),
    ("fig9", "eldorado", 2, "eldo1007"): (
        "47.72 94.22 181.62 325.46 474.21 486.94 738.27 1115.56 1529.46 1699.45 1792.21"
    ),
    ("fig10", "hops", 1, "hops44"): "76.53 135.58 203.16 300.37 428.44 604.34 777.81 944.59 1372.10 1752.35 1795.20",
    ("fig10", "hops", 2, "hops01"): "76.45 134.97 202.36 299.95 426.29 602.25 777.85 944.55 1373.22 1744.46 1816.39",
    ("fig10", "hops", 3, "hops06"): "76.51 134.95 202.81 300.31 427.22 602.79 778.00 946.56 1373.42 1751.70 1783.79",
    ("fig10", "hops", 4, "hops29"): "76.70 135.04 203.23 301.01 426.88 602.03 776.22 943.30 1367.10 1736.22 1778.84",
    ("fig10", "hops", 5, "hops17"): "76.24 134.41 202.38 299.66 425.97 601.00 775.38 944.33 1372.60 1746.15 1799.46",
    ("fig10", "goodall", 1, "goodall05"): (
        "72.92 129.96 209.14 320.06 461.85 620.51 798.74 950.70 1442.66 1865.01 1900.39"
    ),
    ("fig10", "goodall", 2, "goodall05"): (
        "72.32 129.78 208.82 320.15 461.44 620.03 797.92 951.56 1439.73 1858.56 1928.05"
    ),
    ("fig12", "hops", 1, "hops39-42"): "12.49 24.88 49.32 96.17 183.79 341.84 566.30 934.50 1133.88 1527.45 0.80",
    ("fig12", "hops", 2, "hops22-25"): "12.49 24.90 49.39 96.25 185.08 347.24 599.53 889.01 1158.11 1225.20 1256.34",
    ("fig12", "hops", 3, "hops28,37-38,58"): "12.51 24.91 49.47 96.49 183.26 342.10 566.96 884.37 X X X",
}


@pytest.mark.parametrize("key", CURVES, ids=lambda key: f"{key[0]}-{key[1]}-run{key[2]}")
def test_every_published_number_is_the_papers(key: tuple[str, str, int, str]) -> None:
    """Each curve has the eleven numbers of the paper's result file, its host, and X as a point that was not run."""
    figure, platform, run, host = key
    table = read_published(PAPER / f"{figure}.csv")
    curve = table[(table["platform"] == platform) & (table["run"] == run)]
    assert curve["concurrency"].tolist() == LEVELS
    assert set(curve["host"]) == {host}
    told = [None if pd.isna(value) else value for value in curve["output_throughput_tok_s"]]
    assert told == [None if word == "X" else float(word) for word in CURVES[key].split()]


@pytest.mark.parametrize(("figure", "points"), [("fig9", 44), ("fig10", 77), ("fig12", 33), ("example-run-hops", 11)])
def test_each_figure_has_all_its_points_and_the_tidy_columns(figure: str, points: int) -> None:
    """No row is added to what the paper published, and none is lost."""
    table = read_published(PAPER / f"{figure}.csv")
    assert len(table) == points
    assert list(table.columns) == [column.name for column in COLUMNS]
    assert set(table["source"]) == {"published"}
    assert set(table["experiment"]) == {"beltre2025"}
    assert set(table["figure"]) == {figure}


def test_only_the_405b_runs_have_points_that_are_not_ok() -> None:
    """Run 1 crashed at 1024 as in the data file, run 3 ended after 128, and everything else was measured."""
    for figure in ("fig9", "fig10", "example-run-hops"):
        assert set(read_published(PAPER / f"{figure}.csv")["status"]) == {"ok"}
    table = read_published(PAPER / "fig12.csv")
    wrong = table[table["status"] != "ok"]
    assert [tuple(row) for row in wrong[["run", "concurrency", "status"]].to_numpy()] == [
        (1, 1024, "crashed"),
        (3, 256, "not_run"),
        (3, 512, "not_run"),
        (3, 1024, "not_run"),
    ]


def test_the_conflict_about_the_crash_goes_with_every_row_of_figure_12() -> None:
    """Whoever shows a row of figure 12 has the text's 512 and the plot's 1024 at hand."""
    notes = set(read_published(PAPER / "fig12.csv")["note"])
    assert len(notes) == 1
    assert re.search(r"text says that it crashed at 512.*0\.80 at 1024.*\"crash\" at 1024", notes.pop())


def test_the_example_run_has_every_metric_of_the_client() -> None:
    """First and last row of the published log, in the units of the columns."""
    table = read_published(PAPER / "example-run-hops.csv").set_index("concurrency")
    names = ["duration_s", "total_output_tokens", "output_throughput_tok_s", "median_ttft_ms", "p99_itl_ms", "wall_s"]
    assert table.loc[1, names].tolist() == [1714.62, 182289, 106.31, 35.15, 10.26, 2062]
    assert table.loc[1024, names].tolist() == [41.86, 182350, 4355.88, 7641.16, 292.61, 55]
    assert set(table["total_input_tokens"]) == {230398}


def test_the_sets_settings_fill_the_rows() -> None:
    """Model, platforms and parallelism come from set.yaml, and accelerators are counted from them."""
    row = read_published(PAPER / "fig12.csv").iloc[0]
    assert row["model"] == "meta-llama/Llama-3.1-405B-Instruct"
    assert (row["platform_label"], row["accelerator"], row["accelerators"], row["nodes"]) == ("Hops", "H100", 16, 4)
    assert (row["mode"], row["engine_version"], row["num_prompts"]) == ("paper", "0.9.1", 1000)


def test_the_source_and_the_licence_are_stated() -> None:
    """The set names its authors, doi, repository, commit and licence, in the data and in the README."""
    described = read_set(PAPER)
    readme = (PUBLISHED / "README.md").read_text()
    assert described.licence == "CC-BY-4.0"
    assert "CC BY 4.0" in readme
    for word in ("Beltre", "10.1145/3731599.3767356"):
        assert word in described.citation
        assert word in readme
    for word in ("ktpedre/canopie25-paper-artifacts", "14c62e27ec4946b8718981edd1e302c352778596"):
        assert word in described.source
        assert word in readme


def test_a_figure_is_found_by_set_and_name_and_a_wrong_name_gets_a_hint() -> None:
    """Names such as beltre2025/fig9 work; a misspelt set or figure is answered with the nearest one."""
    assert find_figure(PUBLISHED, "beltre2025/fig9")[1].path == PAPER / "fig9.csv"
    with pytest.raises(BerthError, match='Did you mean "beltre2025"'):
        find_figure(PUBLISHED, "beltre2024/fig9")
    with pytest.raises(BerthError, match=r"no figure \"fig99\".*Did you mean \"fig9\""):
        find_figure(PUBLISHED, "beltre2025/fig99")


HEADER = "platform,run,concurrency,status,output_throughput_tok_s\n"


def own_set(folder: Path, csv: str, **changes: Any) -> Path:
    """A user's set in `folder`/mine; `changes` replace or remove (None) keys of set.yaml. Returns its CSV file."""
    described = {
        "schema": 1,
        "name": "mine",
        "citation": "Me, 2026",
        "licence": "CC0-1.0",
        "figures": [{"file": "a.csv", "title": "A", "model": "org/m"}],
    }
    described = {key: value for key, value in (described | changes).items() if value is not None}
    path = folder / "mine" / "a.csv"
    path.parent.mkdir(parents=True)
    path.with_name("set.yaml").write_text(yaml.safe_dump(described))
    path.write_text(csv)
    return path


def test_a_users_set_needs_no_python(tmp_path: Path) -> None:
    """A folder with set.yaml and one CSV file is read like the paper's set."""
    path = own_set(tmp_path, HEADER + "alpha,1,1,ok,10.5\nalpha,1,2,crashed,\n")
    table = read_published(path)
    assert table["output_throughput_tok_s"].tolist()[0] == 10.5
    assert table["status"].tolist() == ["ok", "crashed"]
    assert table.iloc[0][["platform_label", "model", "experiment"]].tolist() == ["Alpha", "org/m", "mine"]


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("platform,run,concurency,status\n", r'unknown column "concurency".*Did you mean "concurrency"'),
        ("platform,run,concurrency,status,source\n", r'unknown column "source".*set\.yaml'),
        ("platform,run,concurrency,status,run\n", r'"run" stands twice'),
        ("platform,run,concurrency\n", r"column status is missing"),
        ("", r"column platform is missing"),
        (HEADER + "alpha,1,1,okay,10\n", r'line 2, column status: "okay".*Did you mean "ok".*not_run'),
        (HEADER + "alpha,1,1,ok,fast\n", r'line 2, column output_throughput_tok_s: "fast" is not a number'),
        (HEADER + "alpha,1,1,ok,nan\n", r'"nan" is not allowed'),
        (HEADER + "alpha,1,1,ok,-3\n", r'"-3" is not allowed'),
        (HEADER + "alpha,1,1,ok,1\nalpha,1,0,ok,10\n", r'line 3, column concurrency: "0" is not allowed'),
        (HEADER + "alpha,1,1.5,ok,10\n", r'"1\.5" is not a whole number'),
        (HEADER + ",1,1,ok,10\n", r"line 2, column platform: the cell is empty"),
        (HEADER + "alpha,1,1\n", r"line 2 has 3 cells, but there are 5 columns"),
        (HEADER + "alpha,1,1,ok,1\nalpha,1,1,ok,2\n", r"lines 2 and 3 are the same point"),
    ],
)
def test_a_mistake_in_a_csv_file_is_one_clear_error(tmp_path: Path, csv: str, message: str) -> None:
    """Unknown columns and statuses, wrong numbers and repeated points are named with their place."""
    path = own_set(tmp_path, csv)
    with pytest.raises(BerthError, match=rf"(?s)a\.csv.*{message}"):
        read_published(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, r'unknown key "colour"'),
        ({"licence": None}, r'"licence" is missing'),
        ({"schema": 2}, r"schema: 2 is not allowed"),
        ({"name": "other"}, r"not the name of its folder"),
        ({"figures": []}, r"figures"),
        ({"figures": [{"file": "a.csv", "title": "A"}]}, r'"model" is missing'),
        ({"figures": [{"file": "../a.csv", "title": "A", "model": "m"}]}, r"figures.0.file"),
        ({"figures": [{"file": "aa.csv", "title": "A", "model": "m"}]}, r'no file "aa\.csv".*Did you mean "a\.csv"'),
        ({"figures": [{"file": "a.csv", "title": "A", "model": "m"}] * 2}, r"listed twice"),
        ({"common": {"nodes": 0}}, r"common\.nodes: 0 is too small"),
    ],
)
def test_a_mistake_in_set_yaml_is_one_clear_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Keys, types and files of a set's description are checked before any number is read."""
    path = own_set(tmp_path, HEADER, **changes)
    with pytest.raises(BerthError, match=rf"set\.yaml.*{message}"):
        read_published(path)


def test_a_file_that_the_set_does_not_list_and_a_folder_without_set_are_errors(tmp_path: Path) -> None:
    """The answer says where to list it, and that set.yaml is missing."""
    path = own_set(tmp_path, HEADER)
    with pytest.raises(BerthError, match="does not list this file"):
        read_published(path.with_name("b.csv"))
    path.with_name("set.yaml").unlink()
    with pytest.raises(BerthError, match=r"set\.yaml: no such file"):
        read_published(path)


def test_the_readmes_example_is_a_valid_set(tmp_path: Path) -> None:
    """The set.yaml that the README tells people to write is accepted."""
    example = re.search(r"```yaml\n(.*?)```", (PUBLISHED / "README.md").read_text(), re.DOTALL)
    assert example
    folder = tmp_path / "example2026"
    folder.mkdir()
    (folder / "set.yaml").write_text(example[1])
    (folder / "fig1.csv").write_text(HEADER + "alpha,1,1,ok,10\n")
    row = read_published(folder / "fig1.csv").iloc[0]
    assert (row["platform_label"], row["accelerators"], row["mode"]) == ("Alpha", 8, "paper")
