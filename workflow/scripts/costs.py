from pathlib import Path

from berth.console import script
from berth.costing import report_costs

with script(snakemake.log[0]):
    report_costs(snakemake.params.config, Path.cwd())
