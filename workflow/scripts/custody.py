from berth.console import script
from berth.custody import CustodyRequest, custody

with script(snakemake.log[0]):
    custody(CustodyRequest(**snakemake.params.request))
