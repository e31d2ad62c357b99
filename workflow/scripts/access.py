from pathlib import Path

from berth.access import access
from berth.console import script
from berth.parse import load_config

with script(snakemake.log[0]):
    access(load_config(snakemake.config, Path.cwd()), Path.cwd(), Path(snakemake.params.report))
