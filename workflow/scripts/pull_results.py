from pathlib import Path

from berth.console import script
from berth.exchange import Exchange, pull_results

given = snakemake.params.exchange
with script(snakemake.log[0]):
    pull_results(Exchange(**{**given, "results": Path(given["results"])}))
