from pathlib import Path

from berth.comparing import keep_baseline
from berth.console import script

with script(snakemake.log[0]):
    keep_baseline(snakemake.params.config, Path.cwd())
