from berth.console import script
from berth.render import tell_rendered

with script(snakemake.log[0]):
    tell_rendered(list(snakemake.input), snakemake.params.left_out)
