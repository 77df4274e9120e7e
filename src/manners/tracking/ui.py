"""What MLflow's own pages show of a study, as tags of its experiment.

By itself MLflow 3 opens on pages for chat traces, and lists runs without a single result. A saved view brings the
columns that a person looks for; the description links to it. A UI that does not know these tags shows nothing of them.
"""

import json
import time

VIEW = "results"
COLUMNS = (
    *("metrics.`after/fit`", "metrics.`after/loss`", "params.`seed`"),
    *("tags.`manners.method`", "tags.`manners.summary`"),
)


def experiment_tags(number: str) -> dict[str, str]:
    """Of the experiment with the id ``number``."""
    page = f"#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    now, state = int(time.time() * 1000), json.dumps({"selectedColumns": COLUMNS})
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"[Runs with their results]({page}); in each, the replies before and after training. "
        "Over seeds: `make report`",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(
            {"name": VIEW, "createdAt": now, "updatedAt": now, "state": state}
        ),
    }
