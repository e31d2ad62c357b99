from berth.acquire import acquire_dataset
from berth.console import script

with script(snakemake.log[0]):
    acquire_dataset(snakemake.params.dataset, snakemake.params.dest, snakemake.output.receipt)
