from pathlib import Path

from berth.console import script
from berth.imports import import_points

with script(snakemake.log[0]):
    import_points(snakemake.params.config, Path.cwd())
