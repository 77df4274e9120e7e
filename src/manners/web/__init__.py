"""Models side by side in a browser, and people's votes on their replies: ``python -m manners.web``."""

import shlex
import socket
import warnings
from pathlib import Path

from omegaconf import DictConfig

from manners.config.overrides import model_group, quoted_override
from manners.errors import MannersError
from manners.pipeline import model_ref
from manners.pipeline.model_ref import ModelRef

HOST = "127.0.0.1"  # nothing outside this machine can reach the page
MAX_RUNS = 3
SHOWN = ("name", "chat_template")  # of a model that has no config of its own


def run_web(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C. Raises MannersError for wrong options before torch is imported."""
    names = [cfg.run] if isinstance(cfg.run, str) else list(cfg.run)
    if not 1 <= len(names) <= MAX_RUNS or len(set(names)) < len(names):
        raise MannersError(f"run={cfg.run}: one to {MAX_RUNS} different runs are shown beside their base.", "run")
    refs = [model_ref.resolve_model(name, cfg) for name in names]
    model_ref.use_experiment_of(refs, cfg)
    check_port(cfg.port)
    try:
        import uvicorn
    except ImportError:
        install = ".venv/bin/pip install -c conf/constraints.txt -e '.[web]'"
        raise MannersError(
            f"the page is served by FastAPI and uvicorn, which are not installed here: {install}"
        ) from None
    warnings.filterwarnings("ignore", category=FutureWarning)  # addressed to library authors
    print("loading torch and the models (some seconds)", flush=True)
    from manners.pipeline.evaluate import dataset_of
    from manners.web.app import make_app
    from manners.web.ballots import Ballots
    from manners.web.models import load_models
    from manners.web.results import report_votes
    from manners.web.vote_file import VoteFile

    votes = VoteFile(Path(cfg.votes or Path(cfg.output_dir) / "votes.jsonl"))
    dataset = dataset_of(cfg, refs) if cfg.dataset or any(ref.config for ref in refs) else None
    models = load_models(cfg, refs, dataset)
    commands = training_commands(cfg, refs[-1], votes.path)
    app = make_app(cfg, models, Ballots(cfg, dataset, models, votes), votes, commands)
    print(f"http://{HOST}:{cfg.port}   votes are appended to {votes.path}   Ctrl-C stops", flush=True)
    try:
        uvicorn.run(app, host=HOST, port=cfg.port, log_level="warning")
    finally:  # Ctrl-C comes as an exception
        if votes.path.exists() and votes.standing():
            report_votes(cfg, [votes.path])


def training_commands(cfg: DictConfig, ref: ModelRef, votes: Path) -> list[str]:
    """What trains the run ``ref`` on the file of votes, to be typed as it is."""
    given = [quoted_override("dataset.path", votes)]
    given += [quoted_override("output_dir", cfg.output_dir)] if cfg.output_dir != "outputs" else []
    model = ref.config.model if ref.config else {"name": ref.path}
    group = model_group(model["name"])
    own = [quoted_override(f"model.{key}", model[key]) for key in SHOWN if model.get(key)]
    given += [f"model={group}"] if group else own
    found_by_name = (Path(cfg.output_dir) / "runs" / ref.name).exists()
    policy = [quoted_override("policy_from", ref.name if found_by_name else ref.path)] if ref.config else []
    reward = ["method=reward", "method.loss=pairwise", "method.corruption_ratio=0.3"]  # else PPO may refuse it
    methods = [["method=dpo", *policy], ["method=kto", *policy], reward]
    return [shlex.join([".venv/bin/python", "train.py", "dataset=jsonl", *given, *method]) for method in methods]


def check_port(port: int) -> None:
    """Raises MannersError where something else listens on the port."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise MannersError(f"port={port} is in use: port={port + 1}, or stop what listens there.", "port")
