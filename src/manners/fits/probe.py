"""Two real steps of a run on its longest batches, in a process of its own, so that its peak memory is its own.

Before them the model answers held-out prompts, as every run does first. Nothing is kept.
"""

import json
import logging
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import rich
import torch
import transformers
from omegaconf import DictConfig, OmegaConf

from manners.data.loading import Splits
from manners.errors import MannersError
from manners.fits import longest
from manners.methods import reward as reward_method
from manners.methods.ppo import trainer
from manners.methods.ppo.loss import update_policy
from manners.methods.ppo.trainer import PPOTrainer
from manners.methods.reward import RewardModule, predict_scores
from manners.methods.sft import SFTModule
from manners.models import reward_model as reward_models
from manners.models.policy import Policy
from manners.pipeline.stages import ppo, reward, sft
from manners.pipeline.stages.context import (
    RunContext,
    configured_tokenizer,
    console,
    fit_module,
    load_base,
    prepare_model,
)
from manners.rewards import combine
from manners.runtime.device import resolve_device
from manners.runtime.run_dir import RunDir
from manners.tracking.logger import NullLogger

STEPS = 2
ASKED, TOLD = "asked.pickle", "told.json"
START = "import sys, manners.pipeline.run, manners.fits.probe as p; p.main(sys.argv[1])"  # with all that a run imports


@dataclass(frozen=True)
class Measured:
    """Bytes, and seconds of the later step on the longest batch; for PPO those of an iteration."""

    baseline: int  # Python and its libraries
    peak: int
    seconds: float


@dataclass
class Clock(NullLogger):
    """Notes when each step is logged."""

    ticks: list[float]

    def log(self, metrics: dict[str, float], step: int) -> None:
        if any(name.startswith("train/") for name in metrics):
            self.ticks.append(time.perf_counter())


def probe(cfg: DictConfig, splits: Splits, reward_cfg: DictConfig | None) -> Measured:
    """Measure in a new process. Raises MannersError where that ends without a result, as when memory runs out."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ASKED).write_bytes(pickle.dumps((cfg, splits, reward_cfg)))
        command = [sys.executable, "-c", START, folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return Measured(*json.loads((Path(folder) / TOLD).read_text()))
    if done.returncode == -signal.SIGKILL:
        raise MannersError(
            "the probe was killed, as happens when memory runs out: stop what else is running, or ask for less."
        )
    why = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
    raise MannersError(f"the probe ended without a result: {why}")


def main(place: str) -> None:
    hush()
    folder = Path(place)
    cfg, splits, reward_cfg = pickle.loads((folder / ASKED).read_bytes())  # noqa: S301  our own, of a moment ago
    device = resolve_device(cfg.hardware.accelerator, cfg.hardware.precision, cfg.hardware.num_threads)
    run = RunContext(cfg, splits, device, RunDir(folder, {}), Clock([]))
    (folder / TOLD).write_text(json.dumps(measure(run, reward_cfg)))


def hush() -> None:
    """What libraries and the run say on the way is no part of the answer."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    console.quiet = rich.get_console().quiet = True


def measure(run: RunContext, reward_cfg: DictConfig | None) -> tuple[int, int, float]:
    torch.manual_seed(run.cfg.seed)
    warm_up()
    baseline = resident() if run.device.kind != "cuda" else 0
    seconds = {"sft": teach, "reward": judge}.get(run.cfg.method.name, partial(play, reward_cfg=reward_cfg))(run)
    peak = torch.cuda.max_memory_reserved() if run.device.kind == "cuda" else most_resident()
    return baseline, peak, seconds


def teach(run: RunContext) -> float:
    tokenizer = configured_tokenizer(run.cfg)
    model = sft.load_network(run, tokenizer)
    sft.evaluate_on_test(longest.shortened(run), model, tokenizer)
    return two_steps(run, partial(SFTModule, model), longest.lessons(run, tokenizer, None))


def judge(run: RunContext) -> float:
    m, tokenizer = run.cfg.method, configured_tokenizer(run.cfg)
    network = reward.load_reward_network(run, tokenizer)
    work = longest.lessons(run, tokenizer, network)
    seconds = two_steps(run, partial(RewardModule, network, m.loss), work)
    network.to(run.device.kind)
    predict_scores(network, tokenizer, m.max_length, longest.examined(run))
    return seconds


def two_steps(run: RunContext, module: Callable[..., Any], work: longest.Lessons) -> float:
    """By the run's own trainer, with a validation after them."""
    cfg = run.cfg.copy()
    cfg.method.max_steps, cfg.method.logging_steps, cfg.method.warmup_steps = STEPS, 1, 0
    cfg.hardware.compile = False  # two steps would be nearly all compiling
    fit_module(replace(run, cfg=cfg), module, work.train, work.validation, work.together)
    first, *_, last = run.tracker.ticks  # type: ignore[union-attr]
    return float(last - first)


def play(run: RunContext, reward_cfg: DictConfig | None) -> float:
    """One pass over a rollout, whose replies are all as long as they may be."""
    cfg, tokenizer = run.cfg, configured_tokenizer(run.cfg)
    s = replace(ppo.method_config(cfg), num_ppo_epochs=1, target_kl=None)
    actor = Policy(prepare_model(cfg, load_base(cfg, run.device), run.device), getattr(s, "critic", "none"),
                  run.device.precision == "bf16")  # fmt: skip
    scorer = None
    if reward_cfg is not None:
        theirs = configured_tokenizer(reward_cfg)
        network = reward_models.load_reward_base(reward_cfg.model.name, theirs, reward_cfg.model.revision)
        network = network.to(run.device.kind).eval().requires_grad_(False)
        scorer = reward_method.make_reward_func(
            network, theirs, reward_cfg.method.max_length, reward_models.ScoreNormalizer()
        )
    parts = combine.build_components(OmegaConf.to_container(cfg.method.rewards, resolve=True), scorer)  # type: ignore[arg-type]
    never = [-1]  # a token that is none: no reply ends before its limit
    game = PPOTrainer(
        actor, tokenizer, never, parts, s, cfg.seed, run.process_group, ppo.vllm_backend(s, actor.model, tokenizer)
    )
    ppo.evaluate_policy_on_test(longest.shortened(run), game)
    asked = longest.questions(run, tokenizer)
    if asked.held_out:
        trainer.score_replies(game.roll(asked.held_out, None), parts, s)
    optimizer = trainer.make_optimizer(actor, s, cfg.method.optim)
    started = time.perf_counter()
    rolled = game.roll(asked.train, trainer.sampling_uniforms(s, cfg.seed, 0))
    scores, _ = trainer.score_replies(rolled, parts, s)
    advantages, returns, _ = trainer.compute_advantages(rolled, scores, s, s.kl_coef, run.process_group)
    read = time.perf_counter()
    pad = tokenizer.pad_token_id
    update_policy(actor, optimizer, rolled, advantages, returns, s, trainer.random.Random(0), pad, run.process_group)
    return read - started + cfg.method.num_ppo_epochs * (time.perf_counter() - read)


def warm_up() -> None:
    """Have the libraries load what they load at a first step, so that it counts as theirs."""
    layer = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.zeros(8, 8)).sum().backward()
    optimizer.step()


def resident() -> int:
    """Bytes that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def most_resident() -> int:
    """The most bytes that this process has held. Linux counts the process that started it into ru_maxrss."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
