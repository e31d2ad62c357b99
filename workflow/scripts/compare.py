from pathlib import Path

from berth.analysis import CompareSettings
from berth.comparing import compare_sources
from berth.console import script

with script(snakemake.log[0]):
    config = snakemake.params.config
    compare_sources(config, Path.cwd(), config.compare or CompareSettings())
