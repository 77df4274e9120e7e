"""TRL's DPO loss against the formula, its reference model, the best weights, and restarts."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from manners.errors import MannersError
from manners.methods import preference
from manners.methods.callbacks import BEST, LAST
from manners.models.lora import prepare_for_training, trainable_parameters
from manners.runtime.device import Device

CPU = Device("cpu", "32")
BETA, STEPS = 0.3, 7


class Killed(Exception):
    """Stands for a kill: nothing that the program would do on its way out is done."""


def rows(count=9, vocab=300):
    g = torch.Generator().manual_seed(7)
    draw = lambda low, high: torch.randint(5, vocab, (int(torch.randint(low, high, (1,), generator=g)),), generator=g)  # noqa: E731
    names = {"prompt_ids": (3, 9), "chosen_ids": (2, 8), "rejected_ids": (2, 8)}
    return [{name: draw(*size).tolist() for name, size in names.items()} for _ in range(count)]


def make_trainer(model, folder, tokenizer, kind="lora", **changes):
    """A trainer of a copy of ``model``, which stays the reference to compare with."""
    torch.manual_seed(1)
    policy = copy.deepcopy(model)
    reference = copy.deepcopy(policy) if kind == "none" else None
    policy = prepare_for_training(policy, kind, 4, 8, 0.2, "all-linear")
    settings: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "beta": BETA,
        "loss_type": "sigmoid",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "eval_steps": 3,
        "save_steps": 2,
        "logging_steps": 3,
    }
    pairs = rows()
    return preference.make_preference_trainer(
        "dpo", policy, reference, tokenizer, pairs, pairs[:4], folder, CPU, seed=3, **settings | changes
    )


def logps(model, prompt, reply):
    """log π(reply | prompt), summed over the reply, from the full logits in double precision."""
    with torch.no_grad():
        logprobs = F.log_softmax(model.eval()(torch.tensor([prompt + reply])).logits[0].double(), -1)
    return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(reply))


def expected_loss(policy, reference, pairs, loss_type="sigmoid"):
    """Rafailov et al. 2023, equation 7; Azar et al. 2023, equation 17, with TRL's mean over the tokens of a reply."""
    losses = []
    for r in pairs:
        log_ratios = {}
        for side in ("chosen_ids", "rejected_ids"):
            log_ratio = logps(policy, r["prompt_ids"], r[side]) - logps(reference, r["prompt_ids"], r[side])
            log_ratios[side] = log_ratio / (len(r[side]) if loss_type == "ipo" else 1)
        margin = log_ratios["chosen_ids"] - log_ratios["rejected_ids"]
        kinds = {"hinge": max(0.0, 1 - BETA * margin), "ipo": (margin - 1 / (2 * BETA)) ** 2}
        losses.append(kinds.get(loss_type, math.log1p(math.exp(-BETA * margin))))
    return sum(losses) / len(losses)


def weights(model):
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def run(model, folder, tokenizer, **changes):
    logged: dict[tuple[str, int], float] = {}
    trainer = make_trainer(model, folder, tokenizer, **changes)
    result = preference.fit_preference(
        trainer, lambda metrics, step: logged.update({(k, step): v for k, v in metrics.items()})
    )
    return trainer.model, result, logged


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_first_loss_is_log_2_since_policy_equals_reference(small_qwen2, tokenizer, tmp_path, kind):
    _, _, logged = run(small_qwen2, tmp_path, tokenizer, kind=kind, max_steps=1, logging_steps=1, warmup_steps=0)
    assert logged["train/loss", 1] == pytest.approx(math.log(2), abs=1e-6)
    assert logged["train/rewards/margins", 1] == pytest.approx(0, abs=1e-6)
    assert logged["eval/loss", 1] != pytest.approx(math.log(2), abs=1e-4)  # one step later it is another


@pytest.mark.parametrize("kind", ["lora", "none"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_trl_loss_equals_the_formula(small_qwen2, tokenizer, tmp_path, kind, loss_type):
    """After some steps, against the model as it was before training: so that is what the reference is."""
    trainer = make_trainer(small_qwen2, tmp_path, tokenizer, kind=kind, loss_type=loss_type)
    with torch.no_grad():
        for p in trainable_parameters(trainer.model).values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    loss = trainer.evaluate()["eval_loss"]
    assert loss == pytest.approx(expected_loss(trainer.model, small_qwen2, rows()[:4], loss_type), rel=1e-4)
    assert loss != pytest.approx(expected_loss(small_qwen2, small_qwen2, rows()[:4], loss_type), rel=1e-3)


def test_make_preference_trainer_has_no_dropout_and_one_adapter(small_qwen2, tokenizer, tmp_path):
    model = make_trainer(small_qwen2, tmp_path, tokenizer).model
    assert list(model.peft_config) == ["default"]
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0}
    assert trainable_parameters(model) and all(".default." in name for name in trainable_parameters(model))


def test_fit_preference_learns_and_keeps_the_best_weights(small_qwen2, tokenizer, tmp_path):
    model, result, logged = run(small_qwen2, tmp_path, tokenizer)
    eval_losses = {step: v for (name, step), v in logged.items() if name == "eval/loss"}
    assert sorted(eval_losses) == [3, 6, 7]  # and at the end
    assert result.best_loss == min(eval_losses.values()) < 0.9 * math.log(2)
    assert eval_losses[result.best_step] == result.best_loss
    assert expected_loss(model, small_qwen2, rows()[:4]) == pytest.approx(result.best_loss, rel=1e-4)
    assert {step for name, step in logged if name == "train/rewards/margins"} == {2, 3, 4, 6, 7}  # at checkpoints too


def test_full_fine_tuning_leaves_the_reference_unchanged(small_qwen2, tokenizer, tmp_path):
    trainer = make_trainer(small_qwen2, tmp_path, tokenizer, kind="none", learning_rate=1e-3)
    preference.fit_preference(trainer, lambda metrics, step: None)
    same = {name: torch.equal(p, small_qwen2.get_parameter(name)) for name, p in trainer.model.named_parameters()}
    assert not any(same.values())
    assert all(torch.equal(p, small_qwen2.get_parameter(name)) for name, p in trainer.ref_model.named_parameters())


def test_fit_preference_raises_on_a_metric_that_is_not_finite(small_qwen2, tokenizer, tmp_path):
    with pytest.raises(MannersError, match=r"not finite at step \d: try a lower method.learning_rate\. The run"):
        run(small_qwen2, tmp_path, tokenizer, learning_rate=float("inf"), max_grad_norm=0.0)


# --- Restarts ---


@pytest.fixture(scope="module")
def uninterrupted(tokenizer, tmp_path_factory):
    from tests.conftest import small_qwen2

    model = small_qwen2.__wrapped__(tokenizer)
    return {kind: run(model, tmp_path_factory.mktemp(kind), tokenizer, kind=kind) for kind in ("lora", "none")}


KILLS = [("lora", cut) for cut in (1, 3, 4, 5, 7)] + [("none", cut) for cut in (4, 7)]


@pytest.mark.parametrize(("kind", "killed_at"), KILLS)
def test_killed_run_resumes_to_the_same_weights_and_metrics(
    small_qwen2, tokenizer, tmp_path, monkeypatch, uninterrupted, kind, killed_at
):
    """Saved every 2 steps, validated every 3, three steps an epoch: the cuts fall before, on and after each."""
    final, result, metrics = uninterrupted[kind]
    step_end, on_save = preference.PreferenceCallback.on_step_end, preference.PreferenceCallback.on_save

    def kill(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == killed_at:
            raise Killed
        step_end(self, args, state, control, **more)

    def kill_late(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        on_save(self, args, state, control, **more)
        if state.global_step == killed_at:
            raise Killed  # after the last step, before the run has ended

    with monkeypatch.context() as patch:
        patch.setattr(
            preference.PreferenceCallback, *(("on_save", kill_late) if killed_at == STEPS else ("on_step_end", kill))
        )
        with pytest.raises(Killed):
            run(small_qwen2, tmp_path, tokenizer, kind=kind)
    assert (tmp_path / LAST).exists() == (killed_at > 1)
    resumed, resumed_result, logged = run(small_qwen2, tmp_path, tokenizer, kind=kind)
    assert resumed_result.resumed_from == {1: 0, 3: 2, 4: 2, 5: 4, 7: 7}[killed_at]
    assert (resumed_result.steps, resumed_result.best_step, resumed_result.best_loss) == (
        result.steps,
        result.best_step,
        result.best_loss,
    )
    one, two = weights(final), weights(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert logged == {key: value for key, value in metrics.items() if key[1] > resumed_result.resumed_from}


def test_half_written_checkpoint_is_never_resumed_from(small_qwen2, tokenizer, tmp_path, monkeypatch, uninterrupted):
    save = preference.ResumableDPOTrainer._save_rng_state

    def kill(self: Any, folder: str) -> None:
        if folder.endswith("-4"):  # weights and optimizer are written, and how far the run was is not
            raise Killed
        save(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(preference.ResumableDPOTrainer, "_save_rng_state", kill)
        with pytest.raises(Killed):
            run(small_qwen2, tmp_path, tokenizer)
    assert (tmp_path / "checkpoint-4").exists()
    assert (tmp_path / LAST).resolve() == (tmp_path / "checkpoint-2").resolve()
    resumed, resumed_result, _ = run(small_qwen2, tmp_path, tokenizer)
    assert resumed_result.resumed_from == 2
    one, two = weights(uninterrupted["lora"][0]), weights(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_checkpoint_is_kept_without_pickled_weights(small_qwen2, tokenizer, tmp_path):
    run(small_qwen2, tmp_path, tokenizer)
    assert {p.name for p in tmp_path.iterdir()} == {BEST, LAST, f"checkpoint-{STEPS}"}
    assert not list(tmp_path.rglob("*.bin.index.json")) and not list(tmp_path.rglob("pytorch_model*"))
    assert (tmp_path / LAST / "adapter_model.safetensors").exists()
