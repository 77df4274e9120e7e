"""``python -m manners.report``: one HTML page and Markdown tables over all runs of a tracking store."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from manners.errors import MannersError
from manners.redact import redact_secrets


def report_command(arguments: list[str] | None = None) -> None:
    """Write the report that the command line asks for; exit with a message where that fails."""
    parser = argparse.ArgumentParser(prog="python -m manners.report", description=__doc__)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///outputs/mlflow.db"
    parser.add_argument("--uri", default=uri, help="MLflow store or server (tracking.uri)")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder to write the report to")
    parser.add_argument("--study", help="name of one MLflow experiment; all of them by default")
    args = parser.parse_args(arguments)
    from manners.report import page, query, sections  # MLflow takes seconds to import: not for --help

    try:
        client = query.connect_store(args.uri)
        runs = query.query_runs(client, args.study)
        studies = sections.build_studies(client, runs)
        html, markdown = page.write_report_files(studies, redact_secrets(args.uri), args.out)
    except MannersError as error:
        sys.exit(f"error: {error}")
    unfinished = sum(run.status != "FINISHED" for run in runs)
    count = f"{len(runs)} runs" + (f" ({unfinished} not finished)" if unfinished else "")
    Console().print(f"{count}: wrote {html} and {markdown}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    report_command()
