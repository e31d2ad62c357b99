from pathlib import Path

from berth.console import script
from berth.doctor import doctor

with script(snakemake.log[0]):
    doctor(snakemake.params.patient, Path(snakemake.params.report))
