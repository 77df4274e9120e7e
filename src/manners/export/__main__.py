"""``python -m manners.export [RUN]``: one folder with the run's model, whole, and its card."""

import argparse
import sys
import warnings
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners.config.schema import TrainConfig
from manners.errors import MannersError
from manners.pipeline import model_ref
from manners.pipeline.model_ref import GENERATING_METHODS, ModelRef
from manners.runtime import run_dir

DTYPES = ("bfloat16", "float32")


def main(arguments: list[str] | None = None) -> None:
    """Write the folder that the command line asks for, and say what to do with it."""
    parser = argparse.ArgumentParser(prog="python -m manners.export", description=__doc__)
    parser.add_argument("run", nargs="?", default="latest", help="latest, a run's id or name, or its folder")
    parser.add_argument("--out", type=Path, help="folder to write; outputs/exports/RUN by default")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="number format of the weights")
    asked = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries say to one another
    try:
        cfg = OmegaConf.structured(TrainConfig)  # where runs are kept when nothing is said
        chosen = resolve_finished_run(asked.run, cfg)
        out = asked.out or Path(cfg.output_dir) / "exports" / chosen.name
        from manners.export import folder  # imports torch, which takes seconds: only once there is something to export

        folder.write_export(chosen, out, asked.dtype)
    except MannersError as error:
        sys.exit(f"error: {error}")
    print(print_usage(chosen, out))


def resolve_finished_run(name: str, cfg: DictConfig) -> ModelRef:
    """The finished run of ours that ``name`` means. Raises MannersError for anything else."""
    chosen = model_ref.resolve_model(
        name, cfg, GENERATING_METHODS if name == "latest" else (*GENERATING_METHODS, "reward"), "RUN"
    )
    if chosen.config is None:
        raise MannersError(f"RUN={name} was not trained here, so there is nothing to merge or to tell: name a run.")
    status = run_dir.load_state(Path(chosen.model).parent).get("status", "finished")
    if status != "finished":
        raise MannersError(f"RUN={name} has not finished: type its command again, and it goes on. Then export it.")
    return chosen


def print_usage(chosen: ModelRef, out: Path) -> str:
    """What to do with the folder."""
    assert chosen.config is not None
    lines = [
        f"\nmodel and card: {out}",
        f"read first:     {out / 'README.md'}    (it repeats your command, folders and all)",
    ]
    if chosen.config.method.name != "reward":
        lines += [
            f"talk to it:     .venv/bin/python chat.py run={out}",
            f"serve it:       .venv/bin/transformers serve {out}",
        ]
        if chosen.config.model.name != "tiny":  # llama.cpp knows tokenizers by name, and not this one
            lines.append(f"as one file:    python llama.cpp/convert_hf_to_gguf.py {out} --outfile {out.name}.gguf")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
