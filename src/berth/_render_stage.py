"""stage.sh: how the model and the image get to where server.sh expects them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from berth import _render_parts as parts
from berth._render_image import image_steps
from berth.container import render_shell
from berth.network import network_env
from berth.shelltext import comment, exports, must, quote, script

if TYPE_CHECKING:
    from berth.rendering import Rendering

# As the paper's scripts set it; stores of sites refuse the newer default.
_AWS = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_MAX_ATTEMPTS": "10"}
_NO_GIT = ["--exclude", ".git*", "--exclude", ".cache/*"]
# Compares a folder with the manifest that Berth writes beside a model in the store, through sha256sum.
_LIST_SUMS = 'import json, sys; [print(f["sha256"], "", f["path"]) for f in json.load(sys.stdin)["files"]]'


def stage_script(rendering: Rendering) -> str:
    """The script with one step per word: `bash stage.sh model`."""
    steps = []
    if rendering.recipe.expects.models_dir:
        steps = _by_berth(rendering) if rendering.platform.store.kind == "embedded" else _model_steps(rendering)
        steps += [_node_step(rendering)] if rendering.platform.node_models_dir else []
    return _script(rendering, steps + image_steps(rendering))


def push_script(rendering: Rendering) -> str:
    """The script for a cluster that takes model and image by itself, once the model is in the store."""
    receipt = rendering.results / "store" / rendering.platform.name / f"{rendering.model.name}.json"
    place = f"s3://{rendering.platform.store.bucket}/{_prefix(rendering)}"
    body = comment("By Berth, because a model without its manifest in the store is not taken there.")
    body += parts.by_workflow(rendering, receipt)
    return _script(rendering, [("push", f"the model into {place}, from the hub", body), *image_steps(rendering)])


def _prefix(rendering: Rendering) -> str:
    return "/".join(part for part in (rendering.platform.store.prefix.strip("/"), rendering.model.repo) if part)


def _script(rendering: Rendering, steps: list[parts.Step]) -> str:
    told = [f"    bash stage.sh {name:<9}{what}" for name, what, _ in steps]
    cases = "".join(f"  {name})\n{_indented(body)}    ;;\n" for name, _, body in steps)
    names = "|".join(name for name, _, _ in steps)
    return script(
        comment(
            f"What {rendering.deployment.name} needs on {rendering.platform.name}, step by step. Berth's own rules do "
            "the same and verify every file by its SHA-256; this is for people who want to see it or to do it by hand.",
            "",
            *told,
        ),
        parts.beginning(rendering),
        _network(rendering),
        f'case "${{1:-}}" in\n{cases}  *)\n    echo "usage: bash stage.sh {names}" >&2\n    exit 2\n    ;;\nesac\n',
    )


def _network(rendering: Rendering) -> str:
    network = rendering.platform.network
    if network is None:
        return ""
    return comment("How this site reaches the outside, and whom it trusts.") + exports(network_env(network))


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())


def _by_berth(rendering: Rendering) -> list[parts.Step]:
    receipt = rendering.results / "staged" / rendering.platform.name / f"{rendering.model.name}.json"
    body = comment("The store of this platform lives only while a rule of Berth uses it.")
    return [("model", f"the model into {rendering.model_dir}", body + parts.by_workflow(rendering, receipt))]


def _model_steps(rendering: Rendering) -> list[parts.Step]:
    model, store = rendering.model, rendering.platform.store
    local = rendering.results / "models" / model.name / "files"
    place = f"s3://{store.bucket}/{_prefix(rendering)}"
    options = ["--endpoint-url", store.endpoint_url, "--region", store.region]
    credentials = exports(_AWS) + must(
        '[ -n "${AWS_ACCESS_KEY_ID:-}${AWS_PROFILE:-}" ]',
        "no credentials: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    )
    if model.source == "hub":
        download = _download(rendering, str(local))
    else:
        download = parts.by_workflow(rendering, local.with_name("manifest.json"))
    push = render_shell(["aws", "s3", "sync", str(local), f"{place}/", *_NO_GIT, *options], quote)
    pull = render_shell(["aws", "s3", "sync", f"{place}/", str(rendering.model_dir), *options], quote)
    show = shlex.join(["aws", "s3", "cp", f"{place}.manifest.json", "-", *options])
    folder = quote(str(rendering.model_dir))
    verify = (
        comment("Berth writes this manifest when it pushes; a model that was pushed by hand has none.")
        + f"{show} |\n  python3 -c {shlex.quote(_LIST_SUMS)} |\n  (cd {folder} && sha256sum --check --quiet)\n"
    )
    return [
        ("download", "where there is internet: the repository from the hub", download),
        ("push", f"from there into {place}", credentials + push),
        ("model", f"on the cluster: into {rendering.model_dir}", credentials + f"mkdir -p {folder}\n" + pull),
        ("verify", "there: compare every file with the manifest", credentials + verify),
    ]


def _node_step(rendering: Rendering) -> parts.Step:
    source, folder = quote(str(rendering.model_dir)), quote(str(rendering.served_dir))
    body = (
        f"mkdir -p {folder}\ncp -r {source}/. {folder}/\n"
        f"python3 -c {shlex.quote(_LIST_SUMS)} < {source}.manifest.json |\n"
        f"  (cd {folder} && sha256sum --check --quiet)\n"
    )
    return "node", f"on every node, before it serves: the model into {rendering.served_dir}, on its own disk", body


def _download(rendering: Rendering, local: str) -> str:
    model = rendering.model
    argv = ["hf", "download", model.repo]
    argv += ["--revision", model.revision] if model.revision else []
    for flag, patterns in (("--include", model.allow_patterns), ("--exclude", model.ignore_patterns)):
        for pattern in patterns:
            argv += [flag, pattern]
    text = ""
    if not model.revision:
        text += comment("No revision is configured: this takes what the branch main is at today.")
    if model.gated:
        text += must(
            '[ -n "${HF_TOKEN:-}" ] || [ -s "${HF_HOME:-$HOME/.cache/huggingface}/token" ]',
            f"{model.repo} is gated: export HF_TOKEN of an account that accepted its licence, or run hf auth login",
        )
    return text + render_shell([*argv, "--local-dir", local], quote)
