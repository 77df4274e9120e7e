"""Hands ``python train.py -m`` to ``manners.sweep``. Hydra looks for sweepers in this namespace only."""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class MannersSweeper(Sweeper):
    """Hydra's interface: it calls ``setup`` and then ``sweep`` with the overrides of the command line."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.settings = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from manners.sweep.run import run_sweep

        return run_sweep(self.settings, arguments, self.launcher)


NODE = {"_target_": f"{__name__}.{MannersSweeper.__name__}"}
ConfigStore.instance().store(group="hydra/sweeper", name="manners", node=NODE, provider="manners")
