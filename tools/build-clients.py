"""Build the environments of the benchmark clients in the cache, or find them there."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from berth.clienttool import load_client
from berth.stages import stage_image

logging.basicConfig(level=logging.INFO, format="%(message)s")
with TemporaryDirectory() as folder:
    for path in sorted(Path("config/clients").glob("*.yaml")):
        stage_image(load_client(path).image("process"), {}, "", f"{folder}/{path.stem}.json", "")
