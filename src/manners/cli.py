"""The command line: compose the config, refuse mistakes, run.

A mistake ends here in about a second, because only Hydra and the schemas have been imported by then.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from manners import checks, config, disk, stop
from manners.composing import Recipes, compose, key_of, needs, origin, quicken
from manners.errors import MannersError, Pruned
from manners.paths import CONF
from manners.sweep import space


def main(config_name: str, task: Callable[[DictConfig, list[str]], object]) -> None:
    """Compose ``conf/{config_name}.yaml`` with the command line and hand both to ``task``, once or for each job."""
    if sys.platform == "darwin":  # torch reads it when it is imported
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    config.register()
    Plugins.instance().register(Recipes)
    args = get_args_parser().parse_args()
    try:
        if args.help:
            from manners.help import print_help

            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                print_help(config_name, compose(config_name, args.overrides))
            return
        check_all(config_name, args.overrides, args.multirun)
    except MannersError as error:
        sys.exit(f"error: {error}")
    failed: list[str] = []

    def job(cfg: DictConfig, typed: list[str] | None = None) -> object:
        """Hydra hands over the config alone, a sweep in this process the job's command too."""
        given = HydraConfig.get().overrides.task if typed is None else typed
        overrides = [o for o in given if not key_of(o).startswith("sweep")]
        try:
            with disk.told(str(cfg.output_dir)):
                return task(quicken(cfg, overrides), overrides)
        except Pruned as why:
            print(why)
        except MannersError as error:
            print(f"error: {error}", file=sys.stderr)
            if in_sweep(cfg):
                raise  # the other jobs go on, and the sweep lists the failed ones at its end
            failed.append(str(error))
        except Exception:
            if in_sweep(cfg):  # of which the sweep will know a line
                traceback.print_exc()
            raise
        return None

    stop.listen()
    try:
        hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(job)()
    except (KeyboardInterrupt, stop.Stopped) as told:
        print("\nstopped" + ("; the same command goes on" if config_name == "train" else ""), file=sys.stderr)
        sys.exit(told.code if isinstance(told, stop.Stopped) else 128 + signal.SIGINT)
    except MannersError as error:  # the sweep itself
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(1)


def check_all(config_name: str, overrides: list[str], multirun: bool) -> None:
    """Refuse a config that cannot work. Of a sweep, each value of each key is tried beside the others' first."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
        except OverrideParseException as error:
            raise MannersError(
                f"'{error.override}' cannot be read as KEY=VALUE. {how_to_quote(error.override)}"
            ) from None
        sweeps = [o for o in parsed if o.is_sweep_override()]
        if sweeps and not multirun:
            raise MannersError(f"{sweeps[0].input_line} lists several values: add -m to run one job for each.")
        fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
        plan = compose(config_name, fixed).get("sweep")
        if plan and not multirun and (plan.space or plan.sampler != "grid"):
            raise MannersError("sweep= is for several jobs: add -m to run them.")
        fixed, dimensions = space.read(parsed, plan.space if plan else {})
        if plan and plan.sampler == "grid":
            space.grid(dimensions, {})  # refuses an interval
        for choice in space.one_by_one(dimensions):
            job = [*fixed, *space.overrides(choice)]
            try:
                cfg = compose(config_name, job)
                checks.check(cfg)
                needs(cfg, job)
            except MannersError as error:
                place = origin(config_name, error.key, job) if error.key else ""
                raise MannersError(f"{place}: {error}" if place.endswith(".yaml") else str(error)) from None


def in_sweep(cfg: DictConfig) -> bool:
    return bool(cfg.get("sweep") and cfg.sweep.parent)


def how_to_quote(override: str) -> str:
    key, _, value = override.partition("=")
    if value.startswith("["):
        inner = ", ".join(f"'{part.strip()}'" for part in value.strip("[]").split(","))
        return f'What is inside the list needs quotes of its own: "{key}=[{inner}]"'
    return "Quote it if it has spaces."
