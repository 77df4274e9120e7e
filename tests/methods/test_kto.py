"""TRL's KTO loss against the formula, the order of the labels, the replies that estimate the KL, and a restart."""

import copy
import math
from typing import Any

import pytest
import torch

from manners.methods import preference
from manners.models.lora import prepare_for_training, trainable_parameters
from tests.methods.test_dpo import CPU, Killed, logps, weights

BETA, WEIGHTS, STEPS, BATCH = 0.3, {True: 1.5, False: 0.7}, 5, 3


def rows(count=10, vocab=300):
    """Every third reply is desirable."""
    g = torch.Generator().manual_seed(7)
    draw = lambda low, high: torch.randint(5, vocab, (int(torch.randint(low, high, (1,), generator=g)),), generator=g)  # noqa: E731
    return [
        {"prompt_ids": draw(3, 9).tolist(), "completion_ids": draw(2, 8).tolist(), "label": i % 3 == 0}
        for i in range(count)
    ]


def make_trainer(model, folder, tokenizer, kind="lora"):
    """A trainer of a copy of ``model``, which stays the reference to compare with."""
    torch.manual_seed(1)
    policy = copy.deepcopy(model)
    reference = copy.deepcopy(policy) if kind == "none" else None
    policy = prepare_for_training(policy, kind, 4, 8, 0.2, "all-linear")
    return preference.make_preference_trainer(
        "kto", policy, reference, tokenizer, rows(), rows(), folder, CPU, seed=3, learning_rate=1e-2,
        max_steps=STEPS, per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, beta=BETA, max_length=32,
        desirable_weight=WEIGHTS[True], undesirable_weight=WEIGHTS[False], lr_scheduler_type="cosine", warmup_steps=0,
        eval_steps=2, save_steps=2, logging_steps=1,
    )  # fmt: skip


def log_ratio(policy, reference, prompt, reply):
    return logps(policy, prompt, reply) - logps(reference, prompt, reply)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def expected_loss(policy, reference, batch):
    """Ethayarajh et al. 2024, equation 7, of rows in one batch, and its estimate of the KL."""
    mismatched = [log_ratio(policy, reference, r["prompt_ids"], r["KL_completion_ids"]) for r in batch]
    z, losses = max(0.0, sum(mismatched) / len(mismatched)), []
    for r in batch:
        sign = 1 if r["label"] else -1
        margin = sign * BETA * (log_ratio(policy, reference, r["prompt_ids"], r["completion_ids"]) - z)
        losses.append(WEIGHTS[r["label"]] * (1 - sigmoid(margin)))
    return sum(losses), z


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_trl_loss_equals_the_formula(small_qwen2, tokenizer, tmp_path, kind):
    """Of a policy that has moved, in batches of 3, 3, 3 and 1; against the model as it was before training."""
    trainer = make_trainer(small_qwen2, tmp_path, tokenizer, kind)
    with torch.no_grad():
        for p in trainable_parameters(trainer.model).values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    found, ordered = trainer.evaluate(), list(trainer.eval_dataset)
    batches = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    losses, estimates = zip(*(expected_loss(trainer.model, small_qwen2, batch) for batch in batches), strict=True)
    assert found["eval_loss"] == pytest.approx(sum(losses) / len(ordered), rel=1e-4)
    assert found["eval_loss"] != pytest.approx(0.5 * sum(WEIGHTS[r["label"]] for r in ordered) / len(ordered), rel=1e-3)
    assert any(estimates) and not all(estimates)  # some are clamped to 0
    [logged] = [entry for entry in trainer.state.log_history if "eval_kl" in entry]
    assert logged["eval_kl"] == pytest.approx(sum(estimates) / len(estimates), rel=1e-3)


def test_first_loss_is_half_the_weights(small_qwen2, tokenizer, tmp_path):
    """There the policy equals the reference, and each reply has half of its weight."""
    logged: dict[str, float] = {}
    trainer = make_trainer(small_qwen2, tmp_path, tokenizer)
    preference.fit_preference(trainer, lambda metrics, step: logged.update(metrics) if step == 1 else None)
    labels = trainer.train_dataset[:BATCH]["label"]
    assert logged["train/loss"] == pytest.approx(sum(WEIGHTS[label] / 2 for label in labels) / BATCH, abs=1e-6)
    assert logged["train/kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("counts", [(8, 8), (12, 4), (3, 9), (7, 21)])
def test_mixed_labels_has_both_in_each_batch_of_four(counts):
    """Each batch has both labels in the proportion of the data, and each row comes once, in an order of the seed."""
    labeled = [{"label": label, "row": i} for label, n in zip((True, False), counts, strict=True) for i in range(n)]
    mixed = preference.mixed_labels(labeled, seed=1)
    batches = [[row["label"] for row in mixed[i : i + 4]] for i in range(0, len(mixed), 4)]
    assert {sum(batch) for batch in batches} == {4 * counts[0] // sum(counts)}
    key = lambda row: (row["label"], row["row"])  # noqa: E731
    assert sorted(mixed, key=key) == sorted(labeled, key=key)
    assert mixed == preference.mixed_labels(labeled, seed=1) != preference.mixed_labels(labeled, seed=2)
    assert [r["row"] for r in mixed if r["label"]] != list(range(counts[0]))


@pytest.mark.parametrize(("count", "expected"), [(6, [2, 0, 1, 5, 3, 4]), (5, [2, 0, 1, 4, 3]), (4, [2, 0, 1, 2])])
def test_kl_replies_are_rotated_within_the_batch(count, expected):
    """The last batch of one row takes a reply from the batch before: its own would make the KL its own reward."""
    plain = [{"completion_ids": [i]} for i in range(count)]
    assert [row["KL_completion_ids"] for row in preference.with_kl_completions(plain, 3)] == [[i] for i in expected]


def test_killed_run_resumes_to_the_same_weights(small_qwen2, tokenizer, tmp_path, monkeypatch):
    def run(folder):
        logged: dict[tuple[str, int], float] = {}
        trainer = make_trainer(small_qwen2, folder, tokenizer)
        result = preference.fit_preference(trainer, lambda m, step: logged.update({(k, step): v for k, v in m.items()}))
        return weights(trainer.model), result, logged

    whole, result, metrics = run(tmp_path / "whole")
    step_end = preference.PreferenceCallback.on_step_end

    def kill(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            raise Killed
        step_end(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(preference.PreferenceCallback, "on_step_end", kill)
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    resumed, resumed_result, logged = run(tmp_path / "killed")
    assert (resumed_result.resumed_from, resumed_result.best_loss) == (2, result.best_loss)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert logged == {key: value for key, value in metrics.items() if key[1] > 2}
