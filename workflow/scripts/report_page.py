from berth.console import script
from berth.report import report

with script(snakemake.log[0]):
    report(
        table=snakemake.input.table,
        provenance=snakemake.input.provenance,
        published_dir=snakemake.params.published_dir,
        experiments=snakemake.params.experiments,
        profiles=snakemake.params.profiles,
        comparisons=snakemake.params.comparisons,
        output=snakemake.output[0],
    )
