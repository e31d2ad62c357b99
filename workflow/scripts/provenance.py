from pathlib import Path

from berth.console import script
from berth.report_provenance import write_provenance

points = [*snakemake.input.points, *snakemake.input.decided]
with script(snakemake.log[0]):
    write_provenance(map(Path, points), map(Path, snakemake.params.failures), Path(snakemake.output[0]))
