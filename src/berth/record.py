"""The point record, schema 1: one JSON file per measured point, its per-request lists beside it."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth import _schema, seal
from berth.coordinates import level_name, level_of
from berth.errors import BerthError
from berth.fsio import write_bytes, write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from berth.coordinates import Level

SCHEMA_VERSION = 1
# The event of a server's timeline that is not of its start: the first measured phase began.
FIRST_REQUEST = "first_request"
# Lists of a result that have no entry per request.
_LISTS_OF_THE_RUN = frozenset({"rps_change_events", "spec_decode_per_position_acceptance_rates"})
# Floating-point lists hardly get smaller by more effort, and a sweep waits for this.
_GZIP_LEVEL = 1


@dataclass(frozen=True)
class Peek:
    """What the plan needs to know of a record: where it belongs, and whether it counts as measured."""

    point: dict[str, Any]
    verdict: str
    valid: bool


def build_record(
    *,
    point: Mapping[str, Any],
    spec: Mapping[str, Any],
    server: Mapping[str, Any],
    client: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    has_requests: bool,
    server_metrics: Mapping[str, float | None] | None,
    validity: Mapping[str, Any],
    wall: Mapping[str, Any],
    failure: Mapping[str, Any] | None = None,
    custody: Mapping[str, Any] | None = None,
    method: Mapping[str, Any] | None = None,
    power: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of one point, keys in the order of the documentation, numbers that JSON does not have as null.

    `client` and `wall` come from `Measurement`, `method` from `mode.Method.as_dict`, `validity` from
    `Judgement.as_dict`, `server_metrics` from `metrics.difference`. A failure's verdict is always "refused". `custody`
    has `model` and `dataset`, the digests of what was served and asked; write_record adds those of the record and of
    its requests file.
    """
    checked = dict(validity)
    if failure is not None:
        checked["verdict"] = "refused"
    record = {
        "schema": SCHEMA_VERSION,
        "point": dict(point),
        "spec": dict(spec),
        "server": dict(server),
        "client": dict(client),
        "result": None if result is None else dict(result),
        "requests_file": requests_name(level_of(point)) if has_requests else None,
        "server_metrics": None if server_metrics is None else dict(server_metrics),
        "validity": checked,
        "failure": None if failure is None else dict(failure),
        "wall": dict(wall),
        **({"method": dict(method)} if method else {}),
        **({"power": dict(power)} if power else {}),
        **({"custody": {**custody, "requests_sha256": None, "record_sha256": seal.BLANK}} if custody else {}),
    }
    cleaned: dict[str, Any] = finite(record)
    return cleaned


def requests_name(level: Level) -> str:
    """The name of the file of per-request lists, beside its record."""
    return f"{level_name(level)}.requests.json.gz"


def write_record(path: Path, record: Mapping[str, Any], requests: Mapping[str, Any] | None) -> None:
    """Write the per-request lists, then the record: where a record is, its lists are.

    Raises:
        BerthError: the record is not of the form of its schema.
        OSError: as the file system says; `path` is then as it was.
    """
    _schema.check(record, "point", str(path))
    name = record["requests_file"]
    if (name is None) != (requests is None):
        raise ValueError(f"requests_file is {name!r}, but requests are {'absent' if requests is None else 'given'}")
    requests_sha256 = None
    if name is not None:
        packed = gzip.compress(_dumps(requests).encode(), _GZIP_LEVEL, mtime=0)
        requests_sha256 = hashlib.sha256(packed).hexdigest()
        write_bytes(path.with_name(name), packed)
    if seal.has_seal(record):
        custody = {**record["custody"], "requests_sha256": requests_sha256}
        write_text(path, seal.sealed_text({**record, "custody": custody}))
    else:
        write_json(path, record)


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(finite(value), allow_nan=False, separators=(",", ":"))


def finite(value: Any) -> Any:
    """A JSON value with null in the place of NaN and the infinities, which JSON does not have.

    The client writes them where a statistic is undefined, such as a mean of nothing.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def split_result(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The client's JSON as (values of the run, lists with an entry per request). No key is renamed."""
    requests = {key: each for key, each in raw.items() if isinstance(each, list) and key not in _LISTS_OF_THE_RUN}
    result = {key: finite(each) for key, each in raw.items() if key not in requests}
    return result, requests


def result_value(result: Mapping[str, Any], key: str) -> Any:
    """A value of the client's JSON whatever version wrote it, None where it has none.

    vLLM up to 0.9 wrote "request_goodput:" with a colon, and no "failed".
    """
    if key in result:
        return result[key]
    if f"{key}:" in result:
        return result[f"{key}:"]
    if key == "failed" and isinstance(result.get("completed"), int) and isinstance(result.get("num_prompts"), int):
        return result["num_prompts"] - result["completed"]
    return None


def read_record(path: Path, *, key: str | None = None) -> dict[str, Any]:
    """A whole record, checked against its schema, and against the `key` of the point that it is expected to be.

    A key is that of coordinates.PointId.

    Raises:
        BerthError: absent, truncated, not JSON, foreign, of a newer schema, of another form, or of another point.
    """
    record = _load(path)
    _schema.check(record, "point", str(path))
    _check_key(path, record["point"], key)
    return record


def read_requests(path: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The per-request lists of the record at `path`, None where it has none.

    Raises:
        BerthError: the file is absent or damaged.
    """
    if record["requests_file"] is None:
        return None
    beside = path.with_name(record["requests_file"])
    try:
        value = json.loads(gzip.decompress(beside.read_bytes()))
    except FileNotFoundError:
        raise BerthError(f"{beside}: no such file, but {path.name} names it. Copy it too, beside its record.") from None
    except (OSError, EOFError, ValueError) as error:
        raise BerthError(f"{beside}: damaged ({error}). Copy it again, or delete it and {path.name}.") from None
    if not isinstance(value, dict):
        raise BerthError(f"{beside}: not an object of per-request lists. Delete it and {path.name} to measure again.")
    return value


def peek(path: Path, *, key: str | None = None) -> Peek:
    """What the plan needs of a record, cheaply: it is whole, it is ours and of this key, and whether it is valid.

    The whole file is parsed, so that a truncated one is found, but not checked against the schema.

    Raises:
        BerthError: absent, truncated, not JSON, foreign, of a newer schema, or of another point.
    """
    record = _load(path)
    try:
        _check_key(path, record["point"], key)
        return Peek(record["point"], record["validity"]["verdict"], is_valid(record))
    except (KeyError, TypeError):
        raise _foreign(path) from None


def is_valid(record: Mapping[str, Any]) -> bool:
    """Whether the record is a measurement: accepted or flagged, without a failure."""
    return record["validity"]["verdict"] in ("accepted", "flagged") and record.get("failure") is None


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise BerthError(f"{path}: no such file.") from None
    except OSError as error:
        raise BerthError(f"{path}: cannot be read: {error.strerror}.") from None
    try:
        record = json.loads(text)
    except ValueError as error:
        raise BerthError(
            f"{path}: truncated or not JSON ({error}). Delete it to measure the point again, or copy it again."
        ) from None
    if not isinstance(record, dict) or "point" not in record or not isinstance(record.get("schema"), int):
        raise _foreign(path)
    if record["schema"] > SCHEMA_VERSION:
        raise BerthError(
            f"{path}: a record of schema {record['schema']}, written by a newer Berth; this one reads schema "
            f"{SCHEMA_VERSION}. Update Berth to a version that writes schema {record['schema']}, or move the file away."
        )
    return record


def _foreign(path: Path) -> BerthError:
    return BerthError(
        f'{path}: not a point record of Berth (no "schema" and "point" of the expected form). Move it out of results/.'
    )


def _check_key(path: Path, point: Mapping[str, Any], key: str | None) -> None:
    own = f"{point['experiment']}/{point['platform']}/{point['spec']}/run{point['run']}/{level_name(level_of(point))}"
    if key is not None and own != key:
        raise BerthError(f"{path}: a record of {own}, in the place of {key}. Move it to {own}.json, or delete it.")
