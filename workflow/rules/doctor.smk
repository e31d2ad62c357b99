# A look at the platform before anything is queued: `snakemake doctor`. It has no output, so that it always looks.
#
# Inputs:  the platform, its scheduler, runtime, folders, store and network
# Outputs: none; the report is printed and kept in results/logs/doctor/{platform}.txt


localrules:
    doctor,


rule doctor:
    log:
        f"{RESULTS}/logs/doctor/{BERTH.platform}.log",
    conda:
        "../../environment.yml"
    params:
        patient=lambda w: patient(),
        report=f"{RESULTS}/logs/doctor/{BERTH.platform}.txt",
    script:
        "../scripts/doctor.py"
