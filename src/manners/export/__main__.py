"""``python -m manners.export [RUN]``: export a run's model as one folder of merged weights with a model card.

``--gguf q8_0`` also converts it for llama.cpp and Ollama, ``--hub me/name`` pushes the folder to the Hugging Face hub.
"""

import argparse
import shlex
import sys
import warnings
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners.config.overrides import quoted_override
from manners.config.schema import TrainConfig
from manners.errors import MannersError
from manners.export import gguf, upload
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
    parser.add_argument("--gguf", choices=gguf.OUTTYPES, help="also write OUT/NAME-GGUF.gguf, and Ollama's Modelfile")
    parser.add_argument("--hub", metavar="OWNER/NAME", help="push the folder to this repository, private if it is new")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # addressed to library authors
    try:
        cfg = OmegaConf.structured(TrainConfig)  # for the defaults
        cfg.output_dir = args.output_dir or cfg.output_dir
        ref = resolve_finished_run(args.run, cfg)
        if args.gguf:
            gguf.check_convertible(ref)
        converter = gguf.find_converter() if args.gguf else []
        if args.hub is not None:
            upload.check_target(args.hub)
        out = args.out or Path(cfg.output_dir) / "exports" / ref.name
        from manners.export import folder  # imports torch, which takes seconds: only for a run that can be exported

        folder.write_export(ref, out, args.dtype)
        lines = gguf_lines(ref, out, converter, args.gguf) if args.gguf else []
        if args.hub is not None:
            lines.append(f"hub:            {upload.push(out, args.hub)}")
    except MannersError as error:
        sys.exit(f"error: {error}")
    print("\n".join([usage_text(ref, out), *lines]))


def gguf_lines(ref: ModelRef, out: Path, converter: list[str], outtype: str) -> list[str]:
    """Convert the export in ``out``, write its Modelfile, and say how to use both."""
    from manners.export.modelfile import write_modelfile

    assert ref.config is not None
    file = gguf.convert(converter, out, outtype)
    note = write_modelfile(out, file, ref.config)
    lines = [f"llama.cpp:      llama-server -m {shlex.quote(str(file))}"]
    if (out / "Modelfile").exists():
        lines.append(f"ollama:         ollama create {shlex.quote(out.name)} -f {shlex.quote(str(out / 'Modelfile'))}")
    return [*lines, f"                {note}"] if note else lines


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
            lines.append(f"for llama.cpp:  make export RUN={shlex.quote(str(Path(ref.path).parent))} GGUF=q8_0")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
