"""PPO and RLOO: the policy answers, is paid for what it says, and answers again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from manners.config import Online
from manners.data.encode import encode
from manners.data.readers import eval_prompts
from manners.errors import MannersError
from manners.evaluation.fluency import nats_under
from manners.evaluation.measure import REWARD, Measured, evenly, exactly, measure
from manners.evaluation.reward_figures import online_curves
from manners.evaluation.stats import ratio
from manners.lineage import Input
from manners.methods import reward, rewards
from manners.methods.ppo import guards, loop
from manners.methods.ppo.advantages import kl_estimate
from manners.methods.ppo.loop import Game
from manners.methods.ppo.world import check_shares
from manners.models import base
from manners.models import reward as reward_models
from manners.models.actor import Actor
from manners.models.reward import Units
from manners.models.vllm import VLLM
from manners.stages import show
from manners.stages.policy import save, starting_policy
from manners.stages.run import Outcome, Run, adapt, console, load_base, load_tokenizer, waiting

SAMPLED = 256  # test prompts whose sampled replies tell the KL: enough for a tenth of a nat


def train(run: Run) -> Outcome:
    cfg, settings = run.cfg, typed(run.cfg)
    check_shares(settings, run.world)
    tokenizer = load_tokenizer(cfg)
    model = adapt(cfg, starting_policy(run), run.device)
    actor = Actor(model, getattr(settings, "critic", "none"), run.device.precision == "bf16")
    parts = rewards.build(OmegaConf.to_container(cfg.method.rewards, resolve=True), reward_function(run))  # type: ignore[arg-type]
    stops, engine = base.stop_tokens(model, tokenizer), sampler(settings, model, tokenizer)
    game = Game(actor, tokenizer, stops, parts, settings, cfg.seed, run.world, engine, cfg.hardware.optim)
    if run.world.rank == 0:
        before = Measured.from_json(run.once("before", lambda: answer(run, game).to_json()))
        run.tracker.log(before.metrics("before"), 0)

    held_out = evenly(waiting(cfg, run.splits.validation or run.splits.test), settings.eval_prompts)
    warn = lambda words: console.print(words, style="yellow")  # noqa: E731
    asked = waiting(cfg, run.splits.train)
    trained = loop.train(game, asked, held_out, run.path, run.tracker.log, run.tracker.table, warn)

    if run.world.rank:
        return Outcome(trained.best_reward, trained.best_iteration, "")
    run.folder.remember(tokens=sampled_tokens(run.path / "metrics.jsonl", settings.batch_size))
    after = answer(run, game)
    run.tracker.log(after.metrics("after"), trained.iterations)
    save(run, model, tokenizer)
    curves = online_curves(run.path / "metrics.jsonl", trained.best_iteration, run.path / "curves.png")
    show.before_after(run, before, after, [curves] if curves else [])
    return Outcome(trained.best_reward, trained.best_iteration, after.headline(before))


def sampled_tokens(metrics_file: Path, replies: int) -> int:
    """Tokens of all the replies that were learned from, ``replies`` of them an iteration."""
    records = map(json.loads, metrics_file.read_text().splitlines())
    return round(sum(r.get("objective/length", 0.0) for r in records) * replies)


def sampler(s: Online, model: Any, tokenizer: Any) -> VLLM | None:
    """What samples in the policy's place, made once for the run and by all its processes together."""
    longest = s.max_prompt_length + s.response_length
    return VLLM(model, tokenizer, longest) if s.generation == "vllm" else None


def typed(cfg: DictConfig) -> Online:
    """The method's options as the dataclass that explains them."""
    return OmegaConf.to_object(cfg.method)  # type: ignore[return-value]


def reward_function(run: Run) -> Any:
    """The trained reward model with its own tokenizer, or None. One that failed its sanity suite is refused."""
    source = run.inputs.get("reward")
    if source is None:
        return None
    check_sound(source, run.cfg.method.sanity_floor)
    made_by = source.config
    revision = made_by.model.revision if made_by else None
    network = reward_models.reload(source.model, revision).to(run.device.kind)
    tokenizer = base.load_tokenizer(str(source.model), chats=False)
    # A regression's raw scores are standardised already; those learned from pairs become so by their units.
    pairwise = made_by is not None and made_by.method.loss == "pairwise"
    units = Units.load(source.model) if pairwise else Units()
    return reward.as_reward(network, tokenizer, made_by.method.max_length if made_by else 512, units)


def check_sound(source: Input, floor: float) -> None:
    file = source.model / "sanity.json"
    passed = OmegaConf.load(file).passed.value if file.exists() else 0.0
    if passed < floor:
        known = f"sees through {passed:.1%} of spoilt replies" if file.exists() else "has no sanity.json"
        raise MannersError(
            f"the reward model {source.run} {known}, and method.sanity_floor={floor}: PPO would exploit it. Train it "
            "on spoilt replies (method.corrupted=0.2), or take it as it is: "
            f"method.sanity_floor={math.floor(100 * passed) / 100:.2f}"
        )


def answer(run: Run, game: Game) -> Measured:
    """The policy on the test rows: manner and loss as for SFT, and what reward, reference and base make of it."""
    cfg, s, model = run.cfg, game.settings, game.actor.model
    held_out = run.splits.test or run.splits.validation
    examples = encode(held_out, game.tokenizer, cfg.dataset.train_on, s.max_prompt_length + s.response_length)
    fixed, asked = eval_prompts(cfg.dataset), waiting(cfg, held_out)
    measured = measure(model, game.tokenizer, asked, fixed, examples, **show.measure_settings(cfg))
    asked = asked[:SAMPLED]
    draws = torch.rand(len(asked), s.response_length, generator=torch.Generator().manual_seed(cfg.seed))
    sampled, greedy = game.roll(asked, draws), game.roll(asked, None)
    kl = (kl_estimate(sampled.logprobs, sampled.ref_logprobs, "k1") * sampled.mask).sum(1)
    scores, _ = loop.score(greedy, game.parts, s)
    nats, tokens = nats_under(load_base(cfg, run.device).to(run.device.kind), greedy.prompt_ids, greedy.reply_ids)
    distinct = guards.distinct(greedy.texts)
    ones = np.ones(len(asked))
    more = {
        REWARD: ratio(scores.double().numpy(), ones),
        "KL to the start, nats a reply": ratio(kl.double().numpy(), ones),
        "length, tokens a reply": ratio(tokens, ones),
        "nats a token under the base": ratio(nats, tokens),
        "distinct-2 of the replies": exactly(distinct),
    }
    return replace(measured, more=measured.more | more)
