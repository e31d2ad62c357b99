from berth.console import script
from berth.servesettings import ServeRequest
from berth.serving import serve

with script(snakemake.log[0], kept="what it keeps up goes on"):
    serve(ServeRequest(**snakemake.params.request))
