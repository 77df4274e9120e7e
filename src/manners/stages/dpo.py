"""DPO: the policy answers, learns which of two replies is the better one, and answers again."""

from copy import deepcopy

from manners.data.encode import encode_pairs
from manners.data.rows import pairs
from manners.errors import MannersError
from manners.evaluation.measure import Measured
from manners.evaluation.reward_figures import preference_curves
from manners.stages import show
from manners.stages.policy import save, starting_policy
from manners.stages.run import Outcome, Run, adapt, load_tokenizer, steps_of
from manners.stages.sft import answer

NOT_TRLS = ("name", "view", "max_length", "num_train_epochs", "max_steps")


def train(run: Run) -> Outcome:
    from manners.methods import dpo  # TRL takes seconds to import, which the other methods need not wait for

    cfg, m = run.cfg, run.cfg.method
    tokenizer = load_tokenizer(cfg)
    learned, kept_back = pairs(run.splits.train), pairs(run.splits.validation or run.splits.test)
    if not learned or not kept_back:
        raise MannersError(
            "no pairs are left to train on, or none to hold out: add rows, or set dataset.max_rows higher."
        )
    policy = starting_policy(run)
    # TRL would load it anew by the name of its config, which after an SFT run is the base's.
    reference = deepcopy(policy).requires_grad_(False) if cfg.adapter.kind == "none" else None
    model = adapt(cfg, policy, run.device)
    before = Measured.from_json(run.once("before", lambda: answer(run, model, tokenizer).to_json()))
    run.tracker.log(before.metrics("before"), 0)

    rows, held_out = (encode_pairs(found, tokenizer, m.max_length) for found in (learned, kept_back))
    settings = {name: value for name, value in m.items() if name not in NOT_TRLS}
    trainer = dpo.trainer(
        model, reference, tokenizer, rows, held_out, run.path, run.device, cfg.seed,
        max_steps=steps_of(cfg, len(rows)), **settings,
    )  # fmt: skip
    fitted = dpo.fit(trainer, run.tracker.log)
    mean = sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows) / len(rows)
    seen = fitted.steps * m.per_device_train_batch_size * m.gradient_accumulation_steps
    run.folder.remember(tokens=round(mean * seen))  # of whole epochs exactly

    after = answer(run, model, tokenizer)
    run.tracker.log(after.metrics("after"), fitted.steps)
    save(run, model, tokenizer)
    curves = preference_curves(run.path / "metrics.jsonl", fitted.best_step, run.path / "curves.png")
    show.before_after(run, before, after, [curves])
    return Outcome(fitted.best_loss, fitted.best_step, after.headline(before))
