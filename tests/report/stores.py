"""A tracking store with known numbers, written with MLflow's client."""

from pathlib import Path

HOSTILE = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title='taken over'\">"
LINK = "[a](https://huggingface.co/a) ![b](https://huggingface.co/b.png) *stars* `ticks` &lt; \\| b"
SAMPLES = f"""# alpha-1

| measure | before | after |
| --- | --- | --- |
| style accuracy | 40.0 % | 60.0 % |

Intervals are at 95 %.

| prompt | before | after |
| --- | --- | --- |
| What is a hare? | {HOSTILE} | {LINK} |
"""
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)


def make_store(folder: Path) -> str:
    """Write two studies, ``alpha`` of single runs and a hostile one with a sweep; returns the store's URI."""
    import mlflow

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)

    def create_study(name):
        return client.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())

    def create_run(experiment, name, params, metrics, status="FINISHED", files=None, steps=(), tags=None):
        method = {"manners.method": "sft", "mlflow.runName": name} if params else {"mlflow.runName": name}
        run_id = client.create_run(experiment, tags=method | (tags or {})).info.run_id
        for key, value in params.items():
            client.log_param(run_id, key, value)
        for key, value in metrics.items():
            client.log_metric(run_id, key, value)
        for step, loss in steps:
            client.log_metric(run_id, "eval/loss", loss, step=step)
        for file, data in (files or {}).items():
            (folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())
            client.log_artifact(run_id, str(folder / file))
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        return run_id

    alpha = create_study("alpha")
    shared = {"method.name": "sft", "model.name": "tiny", "output_dir": "anywhere", "method.epochs": "3"}
    slow, fast = shared | {"method.learning_rate": "0.1"}, shared | {"method.learning_rate": "0.2"}
    create_run(alpha, "alpha-1-old", slow | {"seed": "1"}, {"before/style_accuracy": 0.0, "after/style_accuracy": 0.0})
    for seed, before, after, words in (("1", 0.4, 0.6, 1.0), ("2", 0.5, 0.7, 2.0), ("10", 0.3, 0.8, 3.0)):
        files = {
            "before_after.md": SAMPLES.replace("alpha-1", f"alpha-{seed}"),
            "lineage.md": f"base\n └→ alpha-{seed}",
        }
        create_run(
            alpha, f"alpha-{seed}", slow | {"seed": seed},
            {
                "before/style_accuracy": before, "after/style_accuracy": after, "after/words": words,
                "before/loss": 2.0, "after/loss": 1.0,
                "cost/seconds": 60.0 * float(seed), "cost/tokens": 1500.0, "cost/peak_memory_gb": 1.25,
            },
            files=files, steps=[(10, 2.0), (20, words)],
        )  # fmt: skip
    create_run(
        alpha,
        "alpha-fast",
        fast | {"seed": "1"},
        {"before/style_accuracy": 0.4, "after/style_accuracy": 0.9},
        steps=[(10, 1.0), (20, 0.5)],
    )
    create_run(
        alpha, "alpha-failed", fast | {"seed": "2"}, {}, "FAILED", tags={"manners.error": f"ValueError: {HOSTILE}"}
    )
    create_run(alpha, "alpha-stopped", fast | {"seed": "3"}, {}, "KILLED")
    create_run(alpha, "alpha-running", fast | {"seed": "4"}, {}, "RUNNING")
    evaluation = {"manners.method": "evaluate"}
    create_run(alpha, "evaluation-1", {}, {"a/words": 3.0}, files={"comparison.md": "# comparison\n"}, tags=evaluation)

    other = create_study(f"beta {HOSTILE}")
    report = "# rates\n\n| rate | accuracy |\n| --- | --- |\n| 0.1 | **50 %** |\n\n```\npython train.py rate=0.1\n```\n"
    parent = create_run(
        other, "rates", {"seed": "1"}, {}, tags={"manners.sweep": "rates"},
        files={"sweep.md": report + HOSTILE, "sweep.png": PIXEL},
    )  # fmt: skip
    for name, params in (("child-1", slow), ("child-2", fast)):
        create_run(
            other, name, params | {"seed": HOSTILE}, {"after/style_accuracy": 0.5}, tags={"mlflow.parentRunId": parent}
        )
    return uri
