from berth.console import script
from berth.term import TermRequest, run_term

with script(snakemake.log[0], kept="the server answers what it has begun, and ends"):
    run_term(TermRequest(**snakemake.params.request))
