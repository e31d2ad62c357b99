from berth.console import script
from berth.servesettings import ServeRequest
from berth.serving import unserve

with script(snakemake.log[0], kept="what was asked to end ends"):
    unserve(ServeRequest(**snakemake.params.request))
