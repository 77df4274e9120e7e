"""The command line: compose the config, refuse mistakes, run.

A mistake ends here in about a second, because only Hydra and the schemas have been imported by then.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from manners.config import explain, validate
from manners.config.compose import RunSpec, compose, expand_home, hydra_context, plan_run, register
from manners.config.overrides import override_key, override_source, rewrite_overrides
from manners.errors import MannersError, Pruned
from manners.runtime import atomic_io, signals
from manners.runtime.paths import CONF
from manners.sweep import space

Task = Callable[[RunSpec], object]


def main(config_name: str, task: Task) -> None:
    """Compose ``conf/{config_name}.yaml`` with the command line and hand it to ``task``, once or for each job."""
    if sys.platform == "darwin":  # torch reads it when it is imported
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # So many rounds does a thread that waits hold its core, by default 30 times as many: as fast on idle cores, and
    # 1.3 times as fast where other processes want them (experiments/bench/README.md, threads).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    args, flags = get_args_parser().parse_known_args()
    register(args.config_dir)
    try:
        if args.config_dir and not Path(args.config_dir).is_dir():
            raise MannersError(f"--config-dir {args.config_dir}: there is no such folder.")
        own = Path(args.config_dir or CONF)
        if next(own.glob("*.yaml"), None) and not any((own / group.name).is_dir() for group in CONF.iterdir()):
            raise MannersError(f"--config-dir {own}: recipes belong in its folder 'experiment', which is missing.")
        if ignored := next((f"--config-{name}" for name in ("name", "path") if getattr(args, f"config_{name}")), ""):
            raise MannersError(f"{ignored}: recipes of your own are given by --config-dir DIR experiment=NAME.")
        with hydra_context():
            if flags:
                following = dict(pairwise(sys.argv)).get(flags[0], "")
                raise MannersError(explain.explain_flag(flags[0], following, compose(config_name, [])))
        if args.help:
            from manners.cli.help import print_help

            return print_help(config_name, compose(config_name, args.overrides))
        spec = check_command_line(config_name, args.overrides, args.multirun)
        if spec and args.cfg == "job" and not args.package:
            return print(OmegaConf.to_yaml(spec.cfg, resolve=args.resolve), end="")
    except MannersError as error:
        sys.exit(f"error: {error}")
    signals.handle_sigterm()
    try:
        if spec and not (args.cfg or args.info or args.hydra_help or args.shell_completion):
            sys.exit(0 if run_job(task, spec) else 1)
        with hydra_context():  # Hydra composes --cfg and the jobs of a sweep by itself
            rewritten = rewrite_overrides(config_name, args.overrides)
        sys.argv = [*(word for word in sys.argv if word not in args.overrides), *rewritten]
        hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(sweep_job(config_name, task))()
    except (KeyboardInterrupt, signals.ShutdownRequested) as request:
        print("\nstopped" + ("; the same command resumes" if config_name == "train" else ""), file=sys.stderr)
        sys.exit(request.code if isinstance(request, signals.ShutdownRequested) else 128 + signal.SIGINT)
    except MannersError as error:  # of the sweep itself
        sys.exit(f"error: {error}")


def run_job(task: Task, spec: RunSpec) -> bool:
    """Run ``task`` as the whole command, and say in a sentence what was wrong with it. Whether it ended well."""
    try:
        with atomic_io.report_disk_errors(str(spec.cfg.output_dir)):
            task(spec)
    except Pruned as why:
        print(why)
    except MannersError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def sweep_job(config_name: str, task: Task) -> Callable[..., object]:
    """What Hydra calls for each job of a sweep. Errors are raised: the other jobs go on, and the sweep lists them."""

    def job(cfg: DictConfig, spec: RunSpec | None = None) -> object:
        """Hydra hands over the config alone; a sweep in this process has planned the run already. Raises its errors."""
        try:
            expand_home(cfg)
            with atomic_io.report_disk_errors(str(cfg.output_dir)):
                return task(spec or planned())
        except Pruned as why:
            print(why)
        except MannersError as error:
            print(f"error: {error}", file=sys.stderr)
            raise
        except Exception:  # the sweep prints one line of it
            traceback.print_exc()
            raise
        return None

    def planned() -> RunSpec:
        """The run that Hydra composed a config for; composed once more, since Hydra misreads some texts in files."""
        overrides = list(HydraConfig.get().overrides.task)
        own = [o for o in overrides if not override_key(o).startswith("sweep")]
        cfg = compose(config_name, overrides)
        return plan_run(own, cfg) if config_name == "train" else RunSpec(cfg, own)

    return job


def check_command_line(config_name: str, overrides: list[str], multirun: bool) -> RunSpec | None:
    """The run that a command stands for, or None for a sweep. Raises MannersError for a config that cannot work.

    Of a sweep, each value of each key is checked with the first value of the others.
    """
    with hydra_context():
        try:
            parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
        except OverrideParseException as error:
            following = dict(pairwise(overrides)).get(str(error.override), "")
            raise MannersError(explain.explain_unreadable(str(error.override), following)) from None
        lists = [o for o in parsed if o.is_sweep_override()]
        if lists and not multirun:
            raise MannersError(explain.explain_several_values(str(lists[0].input_line)))
        fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
        cfg = compose(config_name, fixed)
        if not multirun:
            if "sweep" in cfg and (cfg.sweep.space or cfg.sweep.sampler != "grid"):
                raise MannersError("sweep= is for several jobs: add -m to run them.")
            return check_job(config_name, fixed, cfg)
        if asked := next((name for name in ("plan", "preview", "estimate") if cfg.get(name)), ""):
            raise MannersError(f"{asked}=true is about one run: leave out -m, and give each option one value.")
        fixed, dimensions = space.read_space(parsed, cfg.sweep.space if "sweep" in cfg else {})
        if "sweep" in cfg and cfg.sweep.sampler == "grid":
            space.expand_grid(dimensions, {})  # refuses an interval
        for choice in space.each_value_once(dimensions):
            check_job(config_name, [*fixed, *space.choice_overrides(choice)])
    return None


def check_job(config_name: str, overrides: list[str], cfg: DictConfig | None = None) -> RunSpec:
    """The run of one command, checked. Raises MannersError that names the file which set the option at fault."""
    try:
        if config_name == "train":
            return plan_run(overrides, cfg)
        cfg = cfg or compose(config_name, overrides)
        validate.validate_config(cfg)
        return RunSpec(cfg, overrides)
    except MannersError as error:
        source = override_source(config_name, error.key, overrides) if error.key else ""
        raise MannersError(f"{source}: {error}" if source.endswith(".yaml") else str(error)) from None
