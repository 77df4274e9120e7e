"""Two real steps of a run on its longest rows, in a process of their own, so that its peak memory is their own.

Before them the model answers test prompts, as every run does first. Nothing is kept.
"""

import json
import logging
import pickle
import random
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

import psutil
import rich
import torch
import transformers
from omegaconf import DictConfig, OmegaConf

from manners.data.loading import Splits
from manners.errors import MannersError
from manners.estimate.worst_case import WorstCaseBatch, longest_replies, with_longest_test_rows, worst_case_batch
from manners.methods.ppo import loss, trainer
from manners.methods.reward import RewardModule, make_reward_func, predict_scores
from manners.methods.sft import SFTModule
from manners.models.policy import Policy
from manners.models.reward_model import ScoreNormalizer, load_reward_base
from manners.pipeline.stages import context, ppo, reward, sft
from manners.pipeline.stages.context import RunContext, configured_tokenizer
from manners.rewards.combine import build_components
from manners.runtime.run_dir import RunDir, RunState
from manners.tracking.logger import NullLogger

REQUEST, RESULT = "request.pickle", "result.json"
SIGKILLED = -9  # the return code; Windows lacks the name signal.SIGKILL
CODE = "import sys, manners.pipeline.run, manners.estimate.profile as p; p.main(sys.argv[1])"  # imports what a run does


@dataclass(frozen=True)
class Profile:
    """Measured bytes, and seconds of the second step; for PPO and RLOO those of an iteration."""

    baseline: int  # Python and its libraries
    peak: int
    seconds: float


class StepClock(NullLogger):
    """Records when each step is logged."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Note the time of training metrics."""
        if any(name.startswith("train/") for name in metrics):
            self.times.append(time.perf_counter())


def profile(cfg: DictConfig, splits: Splits, microbatch_size: int, reward_cfg: DictConfig | None) -> Profile:
    """Measure in a new process. Raises MannersError where it ends without a result, as without enough memory."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / REQUEST).write_bytes(pickle.dumps((cfg, splits, microbatch_size, reward_cfg)))
        process = subprocess.run([sys.executable, "-c", CODE, folder], capture_output=True, text=True)
        if process.returncode == 0:
            return Profile(*json.loads((Path(folder) / RESULT).read_text()))
    if process.returncode == SIGKILLED:
        raise MannersError(
            "the profiling process was killed, as happens when memory runs out: stop other programs, or ask for less."
        )
    error = process.stderr.strip().rpartition("\n")[2] or "it printed no error"
    raise MannersError(f"the profiling process ended without a result: {error}")


def main(place: str) -> None:
    """The profiling process: read the request in the folder ``place``, and write the result next to it."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    context.console.quiet = rich.get_console().quiet = True
    folder = Path(place)
    cfg, splits, microbatch_size, reward_cfg = pickle.loads((folder / REQUEST).read_bytes())  # noqa: S301  our own
    device = context.device_of(cfg)
    run = RunContext(cfg, splits, device, RunDir(folder, RunState(microbatch_size=microbatch_size)), StepClock())
    torch.manual_seed(cfg.seed)
    warm_up()
    baseline = psutil.Process().memory_info().rss if device.kind != "cuda" else 0
    supervised = {"sft": profile_sft, "reward": profile_reward}.get(cfg.method.name)
    seconds = supervised(run) if supervised else profile_ppo(run, reward_cfg)
    peak = torch.cuda.max_memory_reserved() if device.kind == "cuda" else peak_memory()
    (folder / RESULT).write_text(json.dumps((baseline, peak, seconds)))


def profile_sft(run: RunContext) -> float:
    """Seconds of a step of SFT, after an evaluation."""
    tokenizer = configured_tokenizer(run.cfg)
    model = sft.load_network(run, tokenizer)
    sft.evaluate_on_test(with_longest_test_rows(run), model, tokenizer)
    return two_steps(run, partial(SFTModule, model), worst_case_batch(run, tokenizer))


def profile_reward(run: RunContext) -> float:
    """Seconds of a step of reward training, which is followed by the scoring of test replies."""
    m, tokenizer = run.cfg.method, configured_tokenizer(run.cfg)
    network = reward.load_reward_network(run, tokenizer)
    seconds = two_steps(run, partial(RewardModule, network, m.loss), worst_case_batch(run, tokenizer))
    network.to(run.device.kind)
    predict_scores(network, tokenizer, m.max_length, longest_replies(run))
    return seconds


def two_steps(run: RunContext, module: Callable[..., Any], worst: WorstCaseBatch) -> float:
    """Seconds of the second of two steps by the run's own trainer, which ends with a validation."""
    cfg = run.cfg.copy()
    cfg.method.max_steps, cfg.method.logging_steps, cfg.method.warmup_steps = 2, 1, 0
    cfg.hardware.compile = False  # two steps would be nearly all compilation
    context.fit_module(replace(run, cfg=cfg), module, worst.train, worst.eval, worst.collate)
    return float(run.logger.times[-1] - run.logger.times[0])  # type: ignore[union-attr]


def profile_ppo(run: RunContext, reward_cfg: DictConfig | None) -> float:
    """Seconds of an iteration, of which one epoch is measured. No reply ends early: its stop token is -1."""
    cfg, tokenizer = run.cfg, configured_tokenizer(run.cfg)
    config: Any = replace(OmegaConf.to_object(cfg.method), num_ppo_epochs=1, target_kl=None)  # type: ignore[type-var]
    model = context.prepare_model(cfg, context.load_base(cfg, run.device), run.device)
    policy = Policy(model, getattr(config, "critic", "none"), run.device.precision == "bf16")
    reward_model = untrained_reward_func(run, reward_cfg) if reward_cfg else None
    rewards = build_components(cfg.method.rewards, reward_model, run.device.kind)
    vllm = ppo.vllm_backend(config, model, tokenizer)
    online = trainer.PPOTrainer(policy, tokenizer, [-1], rewards, config, cfg.seed, run.process_group, vllm)
    ppo.evaluate_policy_on_test(with_longest_test_rows(run), online)
    worst = worst_case_batch(run, tokenizer)
    if worst.eval:
        uniforms = trainer.draw_uniforms(len(worst.eval), config.response_length, "eval")
        trainer.score_replies(online.sample(worst.eval, uniforms), rewards, config)
    optimizer = trainer.make_optimizer(policy, config)
    started = time.perf_counter()
    batch = online.sample(worst.train, trainer.sampling_uniforms(config, cfg.seed, 0))
    scores, _ = trainer.score_replies(batch, rewards, config)
    advantages, returns, _ = trainer.compute_advantages(batch, scores, config, config.kl_coef, run.process_group)
    sampled = time.perf_counter()
    shuffle, pad = random.Random(0), tokenizer.pad_token_id
    loss.update_policy(policy, optimizer, batch, advantages, returns, config, shuffle, pad, run.process_group)
    return sampled - started + cfg.method.num_ppo_epochs * (time.perf_counter() - sampled)


def untrained_reward_func(run: RunContext, reward_cfg: DictConfig) -> Any:
    """A reward function of the size of the one that PPO will use."""
    tokenizer, m = configured_tokenizer(reward_cfg), reward_cfg.model
    network = load_reward_base(m.name, tokenizer, m.revision).to(run.device.kind).eval().requires_grad_(False)
    return make_reward_func(network, tokenizer, reward_cfg.method.max_length, ScoreNormalizer())


def warm_up() -> None:
    """Load what the libraries load at a first step, so that it counts as theirs."""
    layer = torch.nn.Linear(8, 8)
    layer(torch.zeros(8, 8)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()


def peak_memory() -> int:
    """The most bytes that this process has held. On Linux ru_maxrss counts the process that started it, too."""
    if (status := Path("/proc/self/status")).exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
