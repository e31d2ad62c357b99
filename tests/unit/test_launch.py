"""A sweep starts only with what its run was defined with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from berth.errors import BerthError
from berth.launch import prepare
from berth.parse import load_config
from berth.parts import texts
from berth.plan import make_plan
from berth.sweep import SweepRequest

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"seed": 0, "vocab_size": 4096, "hidden_size": 128, "layers": 2, "heads": 4}


def request_of(root: Path, source: dict[str, Any]) -> SweepRequest:
    """The request of a run on the local platform, with receipts of a model from `source` and of the right image."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config = load_config({**raw, "config_dir": str(ROOT / "config"), "results": str(root / "results")}, ROOT)
    plan = make_plan(config, root)
    run = next(iter(plan.runs.values()))
    (part,) = texts([list(run.benchmark.concurrency)])
    model, image, dataset = (root / f"{name}.json" for name in ("model", "image", "dataset"))
    model.write_text(json.dumps({"source": source, "dest": str(root / "model")}))
    image.write_text(json.dumps({"reference": "x", "digest": run.definition.image["digest"], "path": str(root)}))
    dataset.write_text(json.dumps({"path": "sharegpt.json"}))
    (root / "model").mkdir()
    (root / "sharegpt.json").write_text("[]")
    request = plan.sweep_request(run.id.key, part)
    request["platform_settings"]["scratch_dir"] = str(root / "scratch")
    return SweepRequest(**request, model_receipt=str(model), image_receipt=str(image), dataset_receipt=str(dataset))


def test_staged_model_of_the_definition_is_taken(tmp_path: Path) -> None:
    """The generated model of the definition passes."""
    request = request_of(tmp_path, {"repo": "berth/tiny-llama", "revision": None, "shape": SHAPE})
    assert prepare(request).model_dir == tmp_path / "model"


@pytest.mark.parametrize(
    "source",
    [
        {"repo": "berth/tiny-llama", "revision": None, "shape": {**SHAPE, "seed": 1}},
        {"repo": "berth/tiny-llama", "revision": None, "shape": {**SHAPE, "layers": 3}},
        {"repo": "berth/tiny-llama", "revision": "0" * 40},
        {"repo": "another/model", "revision": None, "shape": SHAPE},
    ],
)
def test_staged_model_of_another_definition_is_refused(tmp_path: Path, source: dict[str, Any]) -> None:
    """Another seed, shape or repository would be measured under a definition that is not its own."""
    with pytest.raises(BerthError, match="the staged model is"):
        prepare(request_of(tmp_path, source))


def test_an_image_by_the_digest_of_its_list_is_taken(tmp_path: Path) -> None:
    """A recipe may pin the list of all architectures; the staged image is the one of it for this machine."""
    request = request_of(tmp_path, {"repo": "berth/tiny-llama", "revision": None, "shape": SHAPE})
    image = Path(request.image_receipt)
    told = json.loads(image.read_text())
    image.write_text(json.dumps({**told, "digest": "sha256:1", "index_digest": told["digest"]}))
    assert prepare(request).image["digest"] == "sha256:1"
    image.write_text(json.dumps({**told, "digest": "sha256:1", "index_digest": "sha256:2"}))
    with pytest.raises(BerthError, match="Delete this receipt"):
        prepare(request)


def test_the_client_never_goes_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's proxy stands in the environment of jobs, and the way from client to server avoids it."""
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    request = request_of(tmp_path, {"repo": "berth/tiny-llama", "revision": None, "shape": SHAPE})
    for command in prepare(request).client("of-the-test", "0" * 32, None):
        assert command.env["no_proxy"] == command.env["NO_PROXY"] == "*"
        assert command.env["BERTH_INSTANCE"] == "0" * 32
        assert "of-the-test" not in command.env.values()
        assert command.secret_env == {"OPENAI_API_KEY": "of-the-test"}
