"""A tracking store with known numbers, made through MLflow's own client."""

from pathlib import Path

HOSTILE = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title='taken over'\">"
LINK = "[a](https://huggingface.co/a) ![b](https://huggingface.co/b.png) *stars* `ticks` &lt; \\| b"
SAMPLES = f"""# alpha-1

| measure | before | after |
| --- | --- | --- |
| manner fits | 40.0 % | 60.0 % |

Intervals are at 95 %.

| prompt | before | after |
| --- | --- | --- |
| What is a hare? | {HOSTILE} | {LINK} |
"""
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)


def make(folder: Path) -> str:
    """Its address. Two studies: ``alpha`` of plain runs, and a hostile one with a sweep."""
    import mlflow

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)

    def study(name):
        return client.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())

    def run(experiment, name, params, metrics, status="FINISHED", files=None, steps=(), tags=None):
        method = {"manners.method": "sft", "mlflow.runName": name} if params else {"mlflow.runName": name}
        made = client.create_run(experiment, tags=method | (tags or {})).info.run_id
        for key, value in params.items():
            client.log_param(made, key, value)
        for key, value in metrics.items():
            client.log_metric(made, key, value)
        for step, loss in steps:
            client.log_metric(made, "eval/loss", loss, step=step)
        for file, data in (files or {}).items():
            (folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())
            client.log_artifact(made, str(folder / file))
        if status != "RUNNING":
            client.set_terminated(made, status)
        return made

    alpha = study("alpha")
    shared = {"method.name": "sft", "model.name": "tiny", "output_dir": "anywhere", "method.epochs": "3"}
    slow, fast = shared | {"method.learning_rate": "0.1"}, shared | {"method.learning_rate": "0.2"}
    run(alpha, "alpha-1-old", slow | {"seed": "1"}, {"before/fit": 0.0, "after/fit": 0.0})
    for seed, before, after, words in (("1", 0.4, 0.6, 1.0), ("2", 0.5, 0.7, 2.0), ("10", 0.3, 0.8, 3.0)):
        files = {
            "before_after.md": SAMPLES.replace("alpha-1", f"alpha-{seed}"),
            "lineage.md": f"base\n └→ alpha-{seed}",
        }
        run(
            alpha, f"alpha-{seed}", slow | {"seed": seed},
            {
                "before/fit": before, "after/fit": after, "before/loss": 2.0, "after/loss": 1.0, "after/words": words,
                "cost/seconds": 60.0 * float(seed), "cost/tokens": 1500.0, "cost/peak_memory_gb": 1.25,
            },
            files=files, steps=[(10, 2.0), (20, words)],
        )  # fmt: skip
    run(alpha, "alpha-fast", fast | {"seed": "1"}, {"before/fit": 0.4, "after/fit": 0.9}, steps=[(10, 1.0), (20, 0.5)])
    run(alpha, "alpha-failed", fast | {"seed": "2"}, {}, "FAILED", tags={"manners.error": f"ValueError: {HOSTILE}"})
    run(alpha, "alpha-stopped", fast | {"seed": "3"}, {}, "KILLED")
    run(alpha, "alpha-running", fast | {"seed": "4"}, {}, "RUNNING")
    evaluation = {"manners.method": "evaluate"}
    run(alpha, "evaluation-1", {}, {"a/words": 3.0}, files={"report_card.md": "# card\n"}, tags=evaluation)

    other = study(f"beta {HOSTILE}")
    told = "# rates\n\n| rate | fit |\n| --- | --- |\n| 0.1 | **50 %** |\n\n```\npython train.py rate=0.1\n```\n"
    parent = run(
        other, "rates", {"seed": "1"}, {}, tags={"manners.sweep": "rates"},
        files={"sweep.md": told + HOSTILE, "sweep.png": PIXEL},
    )  # fmt: skip
    for name, params in (("child-1", slow), ("child-2", fast)):
        run(other, name, params | {"seed": HOSTILE}, {"after/fit": 0.5}, tags={"mlflow.parentRunId": parent})
    return uri
