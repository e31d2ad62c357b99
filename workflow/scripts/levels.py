from pathlib import Path

from berth.accept import write_decision
from berth.console import script
from berth.coordinates import RunId

w = snakemake.wildcards
with script(snakemake.log[0]):
    write_decision(
        Path(snakemake.params.results),
        RunId(w.experiment, w.platform, w.spec, int(w.run)),
        snakemake.params.asked,
        Path(snakemake.output[0]),
    )
