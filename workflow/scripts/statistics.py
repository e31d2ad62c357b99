from pathlib import Path

from berth.analysis import StatisticsSettings
from berth.console import script
from berth.runs_report import report_runs

with script(snakemake.log[0]):
    config = snakemake.params.config
    report_runs(config, Path.cwd(), config.statistics or StatisticsSettings())
