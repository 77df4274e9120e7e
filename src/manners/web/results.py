"""``python -m manners.web.results VOTES.jsonl [VOTES.jsonl ...]``: what votes say, printed and logged to MLflow.

More options are those of ``python -m manners.web``, such as ``tracking.uri=URI output_dir=FOLDER``.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from manners.data.files import file_rows
from manners.data.formats.votes import PREFERENCES, Vote, check_rows, read_votes
from manners.errors import MannersError
from manners.evaluation.metrics.votes import results_markdown, vote_results
from manners.tracking import store
from manners.tracking.traces import AssessedReply, Assessment


def main(arguments: list[str]) -> None:
    """Raises MannersError for a file that is none, or has a row that is no vote."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    files = [Path(a) for a in arguments if "=" not in a]
    if not files:
        raise MannersError("name a file of votes: python -m manners.web.results outputs/votes.jsonl")
    from manners.config import compose

    compose.register()
    cfg = compose.compose("web", [a for a in arguments if "=" in a])
    report_votes(cfg, files)


def report_votes(cfg: DictConfig, files: list[Path]) -> Path:
    """Print the results of all ``files``; they, and the votes, go into a folder of their own and to MLflow."""
    votes = [vote for file in files for vote in votes_of(file)]
    results = vote_results(votes)
    text = results_markdown(results)
    folder = Path(cfg.output_dir) / "evaluations" / f"votes-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        shutil.copy(file, folder / (file.name if len(files) == 1 else f"{number}-{file.name}"))
    (folder / "results.md").write_text(text + "\n")
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=1, ensure_ascii=False))
    print(text)
    if cfg.tracking.experiment is None:
        cfg.tracking.experiment = "manners"
    tags = {"manners.method": "votes", "mlflow.note.content": text[:7900]}
    store.log_evaluation(cfg, folder.name, tags, results.metrics(), folder, replies=voted_replies(votes))
    print(f"\nresults and votes: {folder}")
    return folder


def voted_replies(votes: Sequence[Vote]) -> dict[str, list[AssessedReply]]:
    """The replies of each model with what people said of them, for MLflow's traces; each reply to a prompt once."""
    found: dict[str, dict[str, AssessedReply]] = {}
    for vote in votes:
        for place, (model, reply) in enumerate(zip(vote.models, vote.replies, strict=True)):
            key = json.dumps([vote.prompt, reply])
            traced = found.setdefault(model, {}).setdefault(key, AssessedReply(vote.prompt, reply))
            traced.assessments.append(("vote", Assessment(said_of(vote, place), vote.annotator, by_person=True)))
    return {model: list(replies.values()) for model, replies in found.items()}


def said_of(vote: Vote, place: int) -> str:
    """What a vote says of the first or second reply, by ``place`` 0 or 1."""
    if vote.verdict in PREFERENCES:
        return "better" if PREFERENCES[place] == vote.verdict else "worse"
    return vote.verdict.replace("_", " ")


def votes_of(file: Path) -> list[Vote]:
    """The votes of a file that stand. Raises MannersError."""
    if not file.is_file():
        raise MannersError(f"{file} is no file of votes: python -m manners.web writes one.")
    found = read_votes(file_rows(file, file.name, "auto", "none"))
    check_rows(found)
    return found.votes


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MannersError as error:
        sys.exit(f"error: {error}")
