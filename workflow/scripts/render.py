from pathlib import Path

from berth.console import script
from berth.render import write_rendered

with script(snakemake.log[0]):
    write_rendered(
        Path(snakemake.output[0]), snakemake.params.texts, snakemake.params.warnings, snakemake.params.manifests
    )
