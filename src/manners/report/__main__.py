"""``python -m manners.report``: one HTML page and the Markdown tables over all runs of a tracking store."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from manners.errors import MannersError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manners.report", description=__doc__)
    parser.add_argument("--uri", default="sqlite:///outputs/mlflow.db", help="MLflow store or server (tracking.uri)")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder to write")
    parser.add_argument("--study", help="one study alone; all by default")
    asked = parser.parse_args(arguments)
    from manners.report import page, query, sections  # MLflow takes seconds to import: not for --help

    try:
        client = query.connect_store(asked.uri)
        found = query.query_runs(client, asked.study)
        files = page.write_report_files(sections.build_studies(client, found), asked.uri, asked.out)
    except MannersError as error:
        sys.exit(f"error: {error}")
    unfinished = sum(run.status != "FINISHED" for run in found)
    told = f"{len(found)} runs" + (f", {unfinished} of them not finished" if unfinished else "")
    Console().print(f"{told}: {files[0]}, and its tables: {files[1]}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
