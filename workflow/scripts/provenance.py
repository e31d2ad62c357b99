from pathlib import Path

from berth.console import script
from berth.report_provenance import write_provenance

with script(snakemake.log[0]):
    write_provenance(map(Path, snakemake.input.points), map(Path, snakemake.params.failures), Path(snakemake.output[0]))
