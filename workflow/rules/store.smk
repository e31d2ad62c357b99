# The object store: a model goes into the site's S3, and from there to the cluster's file system.
#
# Inputs:  results/models/{model}/manifest.json; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY from the environment
# Outputs: results/store/{platform}/{model}.json and results/staged/{platform}/{model}.json, receipts with checksums.
#          `would_move` has none, so that it always looks: it says what the two would move, and moves nothing.


localrules:
    would_move,


rule push_model:
    input:
        manifest=f"{RESULTS}/models/{{model}}/manifest.json",
    output:
        receipt=f"{RESULTS}/store/{{platform}}/{{model}}.json",
    log:
        f"{RESULTS}/logs/push_model/{{platform}}/{{model}}.log",
    conda:
        "../../environment.yml"
    params:
        store=lambda w: store_of(w.platform),
        repo=lambda w: BERTH.models[w.model].repo,
        model_dir=lambda w: f"{RESULTS}/models/{w.model}/files",
        data_dir=f"{RESULTS}/seaweedfs",
    script:
        "../scripts/push_model.py"


rule stage_model:
    input:
        receipt=f"{RESULTS}/store/{{platform}}/{{model}}.json",
    output:
        receipt=f"{RESULTS}/staged/{{platform}}/{{model}}.json",
    log:
        f"{RESULTS}/logs/stage_model/{{platform}}/{{model}}.log",
    conda:
        "../../environment.yml"
    resources:
        **resources_of_staging(),
    params:
        store=lambda w: BERTH.platforms[w.platform].store.of_rules,
        repo=lambda w: BERTH.models[w.model].repo,
        models_dir=lambda w: BERTH.platforms[w.platform].models_dir,
        # Then pods bring it, and this only compares the store with what was pushed.
        in_pods=lambda w: BERTH.platforms[w.platform].kubernetes is not None,
        data_dir=f"{RESULTS}/seaweedfs",
    script:
        "../scripts/stage_model.py"


rule would_move:
    log:
        f"{RESULTS}/logs/would_move/{BERTH.platform}.log",
    conda:
        "../../environment.yml"
    params:
        store=lambda w: store_of(BERTH.platform),
        models=lambda w: models_to_move(),
        models_dir=lambda w: (
            ""
            if BERTH.platforms[BERTH.platform].kubernetes
            else BERTH.platforms[BERTH.platform].models_dir
        ),
        data_dir=f"{RESULTS}/seaweedfs",
    script:
        "../scripts/would_move.py"
