from berth.acquire import acquire_model
from berth.console import script

with script(snakemake.log[0]):
    acquire_model(snakemake.params.model, snakemake.params.dest, snakemake.output.manifest)
