"""A real S3 store on the address that this machine has towards its pods, and on no other."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
import botocore.config
import botocore.exceptions
from cluster_site import bridge_address

from berth.weed import HOST, PORT_OPTIONS, find_weed, free_ports, remove_sockets, s3_config, weed_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class PodStore:
    """Where it is, and the credentials that it takes."""

    endpoint_url: str
    environ: dict[str, str]


@contextlib.contextmanager
def pod_store(folder: Path) -> Iterator[PodStore]:
    """SeaweedFS, empty, as long as the block."""
    (folder / "volumes").mkdir(parents=True)
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    settings = folder / "s3.json"
    settings.touch(mode=0o600)
    settings.write_text(json.dumps(s3_config(key, secret)))
    ports = dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True))
    address = bridge_address()
    command = [word.replace(HOST, address) for word in weed_command(find_weed(), folder, ports)]
    endpoint = f"http://{address}:{ports['s3.port']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=botocore.config.Config(retries={"total_max_attempts": 1}, proxies={}),
        )
        for _ in range(300):
            with contextlib.suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                client.create_bucket(Bucket="models")
                break
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        client.close()
        yield PodStore(endpoint, {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret})
    finally:
        process.terminate()
        process.wait()
        remove_sockets(ports)
