from pathlib import Path

from berth.accept import accept_point
from berth.console import script
from berth.coordinates import PointId, RunId, parse_level

w = snakemake.wildcards
with script(snakemake.log[0]):
    accept_point(
        Path(snakemake.params.results),
        PointId(RunId(w.experiment, w.platform, w.spec, int(w.run)), parse_level(w.level)),
    )
