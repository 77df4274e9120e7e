"""``python -m manners.export [RUN]``: export a run's model as one folder of merged weights with a model card."""

import argparse
import shlex
import sys
import warnings
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners.config.overrides import quoted_override
from manners.config.schema import TrainConfig
from manners.errors import MannersError
from manners.pipeline import model_ref
from manners.pipeline.model_ref import GENERATING_METHODS, ModelRef

DTYPES = ("auto", "bfloat16", "float16", "float32")


def main(arguments: list[str] | None = None) -> None:
    """Export the run that the command line names, and print how to use the folder."""
    parser = argparse.ArgumentParser(prog="python -m manners.export", description=__doc__)
    parser.add_argument("run", nargs="?", default="latest", help="latest, a run's id or name, or its folder")
    parser.add_argument("--out", type=Path, help="output folder; default: OUTPUT_DIR/exports/RUN")
    parser.add_argument("--output-dir", help="folder whose runs are looked through, as output_dir of train.py")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="dtype of the weights; auto: the base's")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # addressed to library authors
    try:
        cfg = OmegaConf.structured(TrainConfig)  # for the defaults
        cfg.output_dir = args.output_dir or cfg.output_dir
        ref = resolve_finished_run(args.run, cfg)
        out = args.out or Path(cfg.output_dir) / "exports" / ref.name
        from manners.export import folder  # imports torch, which takes seconds: only for a run that can be exported

        folder.write_export(ref, out, args.dtype)
    except MannersError as error:
        sys.exit(f"error: {error}")
    print(usage_text(ref, out))


def resolve_finished_run(name: str, cfg: DictConfig) -> ModelRef:
    """The finished run that ``name`` refers to. Raises MannersError if there is no such run."""
    methods = GENERATING_METHODS if name == "latest" else (*GENERATING_METHODS, "reward")
    ref = model_ref.resolve_model(name, cfg, methods, "RUN")
    if ref.config is None:
        raise MannersError(f"RUN={name} was not trained here, so there is nothing to export: name a run.")
    return ref


def usage_text(ref: ModelRef, out: Path) -> str:
    """How to use the exported folder."""
    assert ref.config is not None
    lines = [
        f"\nmodel and card: {out}",
        f"check first:    {out / 'README.md'}    (the card contains your command, with its paths)",
    ]
    if ref.config.method.name != "reward":
        lines += [
            f"chat:           .venv/bin/python chat.py {shlex.quote(quoted_override('run', out))}",
            f"serve:          .venv/bin/transformers serve {shlex.quote(str(out))}",
        ]
        if ref.config.model.name != "tiny":  # llama.cpp knows tokenizers by name, and not this one
            folder, file = shlex.quote(str(out)), shlex.quote(f"{out.name}.gguf")
            lines.append(f"convert:        python llama.cpp/convert_hf_to_gguf.py {folder} --outfile {file}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
