# Points that other tools measured, for figures, tables, statistics and comparisons. Nothing here is ever measured.
#
# Inputs:  the file that `imports` names, and the files that it names
# Outputs: results/imported/{experiment}/{platform}/{spec}/run{run}/c{concurrency}.json


localrules:
    import_points,


# It has no output: whether a file is known already is asked of the points and not of time stamps.
rule import_points:
    log:
        f"{RESULTS}/logs/import_points.log",
    conda:
        "../../environment.yml"
    params:
        config=lambda w: BERTH,
    script:
        "../scripts/import_points.py"
