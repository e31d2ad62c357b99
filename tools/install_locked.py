"""Install a lock into a virtual environment that has uv, with the site's settings: install_locked.py VENV LOCK."""

import subprocess
import sys
from pathlib import Path

from berth.image import default_cache_dir
from berth.packages import install_lock

venv, lock = map(Path, sys.argv[1:])
try:
    install_lock(venv / "bin/python", lock, default_cache_dir(), hashes=True)
except subprocess.CalledProcessError as error:
    sys.exit(f"{lock} could not be installed:\n{error.stderr}")
