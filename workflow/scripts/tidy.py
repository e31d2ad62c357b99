from berth.console import script
from berth.draw import tidy

with script(snakemake.log[0]):
    tidy(
        records=[*snakemake.input.points, *snakemake.input.decided],
        failures=snakemake.params.failures,
        imported=list(snakemake.input.imported),
        not_run=snakemake.params.not_run,
        labels=snakemake.params.labels,
        asked=snakemake.params.asked,
        parquet=snakemake.output.parquet,
        csv=snakemake.output.csv,
    )
