from berth.console import script
from berth.stages import mirror

with script(snakemake.log[0]):
    mirror(snakemake.params.request, snakemake.output.receipt)
