"""The documentation says what the code does, as far as that can be compared: keys, defaults, dependencies, links."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from berth import access_settings, config, kubernetes
from berth.validity import Thresholds

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "config" / "README.md"

# A second-level heading of the reference, and the schema whose keys stand below it.
SECTIONS = {
    "config.yaml": "config",
    "models/NAME.yaml": "model",
    "datasets/NAME.yaml": "dataset",
    "platforms/NAME.yaml": "platform",
}
# Schema and path of a mapping, and the dataclass that holds its values.
DATACLASSES: dict[tuple[str, str], type] = {
    ("config", ""): config.Config,
    ("config", "deployments.NAME."): config.Deployment,
    ("config", "benchmarks.NAME."): config.Benchmark,
    ("config", "benchmarks.NAME.validity."): Thresholds,
    ("config", "experiments.NAME."): config.Experiment,
    ("config", "sweep."): config.SweepSettings,
    ("config", "services."): config.ServiceSettings,
    ("model", ""): config.Model,
    ("dataset", ""): config.Dataset,
    ("platform", ""): config.Platform,
    ("platform", "accelerator."): config.Accelerator,
    ("platform", "store."): config.Store,
    ("platform", "network."): config.Network,
    ("platform", "registry."): config.Registry,
    ("platform", "recipes.NAME."): config.RecipeSettings,
    ("platform", "slurm."): config.Slurm,
    ("platform", "slurm.staging."): config.Staging,
    ("platform", "flux."): config.Flux,
    ("platform", "flux.staging."): config.Staging,
    ("platform", "access."): access_settings.Access,
    ("platform", "access.login."): access_settings.Login,
    ("platform", "access.nginx."): access_settings.Nginx,
    ("platform", "kubernetes."): kubernetes.Kubernetes,
    ("platform", "kubernetes.expose."): kubernetes.Expose,
}
NOTHING: tuple[Any, ...] = (None, "", (), [], {}, access_settings.Access())

Row = dict[str, str]


def rows(text: str) -> list[Row]:
    """The rows of the tables that have the columns key, type, default and meaning."""
    found = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells == ["key", "type", "default", "meaning"]:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            assert len(cells) == 4, f"not four cells: {line}"
            found.append(dict(zip(("key", "type", "default", "meaning"), cells, strict=True)))
    return found


def documented() -> dict[str, dict[str, Row]]:
    """Schema -> key -> row of the reference."""
    parts = re.split(r"^## (.+)$", REFERENCE.read_text(), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {
        schema: {row["key"].strip("`"): row for row in rows(sections[heading])} for heading, schema in SECTIONS.items()
    }


def described(schema: str) -> dict[str, dict[str, Any]]:
    """Path -> schema, whether it is required, and with which source or kind, of every key of a schema file.

    NAME stands for the names that a user chooses.
    """
    root = yaml.safe_load((ROOT / "workflow" / "schemas" / f"{schema}.schema.yaml").read_text())
    found: dict[str, dict[str, Any]] = {}

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        target = root if "$ref" in node else node
        # Within one file, as in "#/$defs/name".
        for part in node.get("$ref", "#").split("/")[1:]:
            target = target[part]
        return target

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, reference in node.get("properties", {}).items():
            value = resolved(reference)
            sources = [
                branch["properties"]["source" if "source" in branch["properties"] else "kind"]["const"]
                for branch in node.get("oneOf", [])
                if key in branch.get("required", [])
            ]
            found[prefix + key] = {"schema": value, "required": key in node.get("required", []), "with": sources}
            walk(value, f"{prefix}{key}.")
            named = value.get("additionalProperties")
            if isinstance(named, dict) and "properties" in named:
                walk(named, f"{prefix}{key}.NAME.")

    walk(root, "")
    return found


@pytest.mark.parametrize("schema", SECTIONS.values())
def test_reference_has_every_key_and_no_other(schema: str) -> None:
    """Each key of the schema has a row in config/README.md, and each row there is a key of the schema."""
    assert documented()[schema].keys() == described(schema).keys()


@pytest.mark.parametrize("schema", SECTIONS.values())
def test_reference_says_what_is_required(schema: str) -> None:
    """A row says "required" exactly where the schema does, also where that depends on source or kind."""
    for key, known in described(schema).items():
        told = documented()[schema][key]["default"]
        if known["required"]:
            assert told == "required", key
        elif known["with"]:
            assert told == "required with " + ", ".join(f"`{source}`" for source in known["with"]), key
        else:
            assert not told.startswith("required"), key


@pytest.mark.parametrize("schema", SECTIONS.values())
def test_reference_has_every_allowed_word(schema: str) -> None:
    """Where a key takes one of a few words, its row has all of them and no other."""
    for key, known in described(schema).items():
        words = [value for value in known["schema"].get("enum", []) if isinstance(value, str)]
        if words and "boolean" not in known["schema"].get("type", []):
            assert set(re.findall(r"`([^`]+)`", documented()[schema][key]["type"])) == set(words), key


@pytest.mark.parametrize(("schema", "prefix"), DATACLASSES, ids=lambda value: value or "top")
def test_reference_has_the_defaults_of_the_code(schema: str, prefix: str) -> None:
    """Every default in config/README.md is that of the dataclass which the configuration becomes."""
    table = documented()[schema]
    compared = 0
    for field in fields(DATACLASSES[schema, prefix]):
        key = prefix + field.name
        if key not in table or table[key]["default"].startswith("required"):
            continue
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if default is MISSING:
            continue
        told = table[key]["default"]
        if told == "none":
            assert default in NOTHING, key
        else:
            assert yaml.safe_load(told.strip("`")) == default, key
        compared += 1
    # Every one of these has at least one key with a default, so a renamed field cannot empty the comparison.
    assert compared


def dependencies() -> set[str]:
    """Names of all dependencies of pyproject.toml: runtime, build and development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    listed = [*project["dependencies"], *(item for extra in extras for item in extra)]
    return {canonicalize_name(Requirement(item).name) for item in listed}


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md has one line for each dependency of pyproject.toml, and none for another."""
    text = (ROOT / "docs" / "dependencies.md").read_text()
    packages = text.partition("\n## Other programs")[0]
    listed = re.findall(r"^\| `([^`]+)` \| (.+) \|$", packages, flags=re.MULTILINE)
    names = [canonicalize_name(name) for name, _ in listed]
    assert sorted(names) == sorted(dependencies())


def tracked_pages() -> list[Path]:
    """The Markdown files that belong to the repository, or all of them where there is no git."""
    told = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md"],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode == 0:
        return [path for name in told.stdout.split("\0") if name and (path := ROOT / name).exists()]
    return [
        path
        for path in ROOT.rglob("*.md")
        if not {".venv", "results", ".snakemake"} & set(path.relative_to(ROOT).parts)
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_relative_link_is_broken() -> None:
    """Every relative link and picture of every Markdown file leads to a file, and to a heading where it names one."""
    broken = []
    pages = tracked_pages()
    assert ROOT / "README.md" in pages
    for page in pages:
        text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken
