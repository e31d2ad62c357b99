"""What the rule `import_points` does: files of other tools into results/imported, as an import file says."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from berth import _schema
from berth._import_aiperf import is_aiperf, read_aiperf
from berth._import_csv import read_csv
from berth._import_guidellm import is_guidellm, read_guidellm
from berth._import_vllm import is_vllm, read_vllm
from berth.columns import BY_NAME
from berth.doubts import doubts
from berth.errors import BerthError
from berth.fsio import canonical_json, sha256_file, sha256_text
from berth.imported import write_imported
from berth.record import finite

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from berth.config import Config
    from berth.reading import Reading

logger = logging.getLogger(__name__)

# Columns that make points another measurement: they name the spec. Levels, runs and hosts do not.
_DEFINING = (
    *("model", "revision", "accelerator", "accelerators", "tensor_parallel", "pipeline_parallel", "nodes"),
    *("engine", "engine_version", "image", "image_digest", "mode", "dataset", "client", "client_version"),
)
# Set by the import itself.
_SET = {"source", "experiment", "figure", "spec", "concurrency", "status", "reason_codes", "note", "run", "platform"}


def import_points(config: Config, root: Path) -> list[Path]:
    """Import what the import file of the configuration names; the points' files, new and known ones.

    Raises:
        BerthError: no import file is given, it is wrong, a file is absent or of no known format, says no concurrency,
            or is another one than was imported as the same point. What was imported before stays.
    """
    if not config.imports:
        raise BerthError(
            "import_points: say what to import. Example: snakemake --profile profiles/local import_points --config "
            "imports=others/import.yaml; docs/import.md has the form of the file."
        )
    path = root / config.imports
    request = _schema.load_yaml(path)
    _schema.check(request, "imports", str(path))
    records = [
        record
        for source in request["sources"]
        for file in _files(path, source["files"])
        for record in _records(file, source, request["experiment"], root)
    ]
    done = write_imported(root / config.results, records)
    _tell(records, done, request["experiment"], config)
    return [file for file, _ in done]


def read_file(path: Path, wanted: str, columns: Mapping[str, Mapping[str, str]]) -> tuple[str, list[Reading]]:
    """The format of a file and the measurements in it.

    Raises:
        BerthError: it cannot be read, or is not of the wanted format ("auto": of none).
    """
    if wanted == "csv" or (wanted == "auto" and path.suffix.lower() == ".csv"):
        return "csv", read_csv(path, columns)
    values = _json(path)
    found: dict[str, bool] = {
        "guidellm": is_guidellm(values[0]),
        "aiperf": is_aiperf(values[0]),
        "vllm": all(is_vllm(value) for value in values),
    }
    matches = [name for name, matched in found.items() if matched and wanted in ("auto", name)]
    if not matches:
        raise BerthError(
            f"{path}: this is no {'result that Berth knows' if wanted == 'auto' else f'file of format {wanted}'}. "
            "Known: vLLM's --save-result, guidellm's JSON report, aiperf's profile_export_aiperf.json, and CSV."
        )
    if matches[0] == "guidellm":
        return "guidellm", read_guidellm(values[0], str(path))
    return matches[0], [read_aiperf(values[0], str(path))] if matches[0] == "aiperf" else read_vllm(values)


def _json(path: Path) -> list[Any]:
    """The JSON values of a file: one, or one per line."""
    try:
        text = path.read_text(encoding="utf-8")
        try:
            return [json.loads(text)]
        except ValueError:
            return [json.loads(line) for line in text.splitlines() if line.strip()] or [None]
    except (OSError, ValueError) as error:
        raise BerthError(f"{path}: not a readable JSON file ({error}).") from None


def _files(request: Path, patterns: list[str]) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        matched = sorted(request.parent.glob(pattern)) if not pattern.startswith("/") else [request.parent / pattern]
        if not matched or not all(each.is_file() for each in matched):
            raise BerthError(f"{request}: sources.files: no file {pattern} in {request.parent}. Correct the path.")
        found += matched
    return list(dict.fromkeys(found))


def _records(path: Path, source: Mapping[str, Any], experiment: str, root: Path) -> list[dict[str, Any]]:
    form, readings = read_file(path, source.get("format", "auto"), source.get("columns", {}))
    digest = sha256_file(path)
    shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    records = [_record(path, reading, source, experiment) for reading in readings]
    stated = source.get("known", {})
    for record, reading in zip(records, readings, strict=True):
        record["origin"] = {
            "file": shown,
            "sha256": digest,
            "entry": reading.entry,
            "format": form,
            "tool": reading.tool or _text(stated.get("client")),
            "tool_version": reading.tool_version or _text(stated.get("client_version")),
        }
        definition = {
            "imported": form,
            **{name: record["values"][name] for name in _DEFINING if name in record["values"]},
        }
        definition |= {name: value for name, value in (("client", record["origin"]["tool"]),) if value}
        record["definition"] = definition
        record["point"]["spec"] = sha256_text(canonical_json(definition))[:10]
    return [finite({name: record[name] for name in _ORDER}) for record in records]


_ORDER = ("schema", "imported", "point", "definition", "origin", "values", "result", "validity")


def _record(path: Path, reading: Reading, source: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    where = f"{path}{f', {reading.entry}' if reading.entry else ''}"
    values = {**_stated(path, source.get("known", {})), **reading.values}
    level = reading.concurrency or source.get("concurrency")
    platform = values.pop("platform", None) or source.get("platform")
    if level is None or level < 1:
        raise BerthError(
            f"{where}: it does not say the maximum number of requests in flight. Set concurrency in the import file, "
            "or leave it out: a load that follows a rate alone is no point of a curve over concurrency."
        )
    if platform is None:
        raise BerthError(f"{where}: on which platform was it measured? Set platform in the import file.")
    return {
        "schema": 1,
        "imported": True,
        "point": {
            "experiment": experiment,
            "platform": platform,
            "spec": "",
            "run": values.pop("run", None) or source.get("run", 1),
            "concurrency": level,
            "deployment": values.pop("deployment", None) or source.get("deployment"),
        },
        "values": values,
        "result": dict(reading.result),
        "validity": doubts(reading, level),
    }


def _stated(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the import file says, with the types of the table's columns."""
    for name, value in known.items():
        column = BY_NAME.get(name)
        if column is None or name in _SET:
            raise BerthError(
                f"{path}: known.{name}: no column that an import can set.{_schema.nearest(name, list(BY_NAME))}"
            )
        kinds: dict[str, Any] = {"text": str, "integer": int, "number": (int, float)}
        if not isinstance(value, kinds[column.kind]):
            raise BerthError(f"{path}: known.{name}: {value!r} is no {column.kind}.")
    return dict(known)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _tell(records: list[dict[str, Any]], done: list[tuple[Path, bool]], experiment: str, config: Config) -> None:
    for record, (path, new) in zip(records, done, strict=True):
        reasons = ", ".join(reason["code"] for reason in record["validity"]["reasons"])
        told = f" ({record['validity']['verdict']}: {reasons})" if reasons else ""
        logger.info("%s %s from %s%s", "Imported" if new else "Known", path, record["origin"]["file"], told)
    logger.info("%d points imported, %d known before", sum(new for _, new in done), sum(not new for _, new in done))
    if experiment not in config.experiments:
        logger.warning(
            "%s is no experiment of the configuration, so that figures and tables do not show these points. Add it, or "
            "import them into one of: %s.",
            experiment,
            ", ".join(config.experiments),
        )
