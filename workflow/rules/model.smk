# Models and datasets: from the hub at a pinned commit, or generated from a seed.
#
# Inputs:  config/models, config/datasets, HF_TOKEN and HF_ENDPOINT from the environment
# Outputs: results/models/{model}/manifest.json and the files beside it; results/datasets/{dataset}/receipt.json


rule download_model:
    output:
        manifest=f"{RESULTS}/models/{{model}}/manifest.json",
    log:
        f"{RESULTS}/logs/download_model/{{model}}.log",
    conda:
        "../../environment.yml"
    params:
        model=lambda w: asdict(BERTH.models[w.model]),
        dest=lambda w: f"{RESULTS}/models/{w.model}/files",
    script:
        "../scripts/download_model.py"


rule fetch_dataset:
    output:
        receipt=f"{RESULTS}/datasets/{{dataset}}/receipt.json",
    log:
        f"{RESULTS}/logs/fetch_dataset/{{dataset}}.log",
    conda:
        "../../environment.yml"
    params:
        dataset=lambda w: BERTH.datasets[w.dataset].of_rules,
        dest=lambda w: f"{RESULTS}/datasets/{w.dataset}/{BERTH.datasets[w.dataset].file}",
    script:
        "../scripts/fetch_dataset.py"
