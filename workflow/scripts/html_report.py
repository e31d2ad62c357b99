from berth.console import script
from berth.report import report_what_there_is

with script(snakemake.log[0]):
    report_what_there_is(**snakemake.params.request)
