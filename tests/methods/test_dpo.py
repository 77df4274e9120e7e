"""DPO by TRL against a loss computed by hand, its reference, its tokens' way to the loss, and restarts."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from manners.errors import MannersError
from manners.methods import dpo
from manners.methods.lightning_fit import BEST, LAST
from manners.models.lora import prepare_for_training, trainable_parameters
from manners.runtime.device import Device

CPU = Device("cpu", "32")
BETA, STEPS = 0.3, 7


class Cut(Exception):
    """Stands for a kill: nothing that the program would do on its way out is done."""


def rows(count=9, vocab=300):
    g = torch.Generator().manual_seed(7)
    draw = lambda low, high: torch.randint(5, vocab, (int(torch.randint(low, high, (1,), generator=g)),), generator=g)  # noqa: E731
    names = {"prompt_ids": (3, 9), "chosen_ids": (2, 8), "rejected_ids": (2, 8)}
    return [{name: draw(*size).tolist() for name, size in names.items()} for _ in range(count)]


def made(model, folder, tokenizer, kind="lora", **changes):
    """A trainer of a copy of ``model``, which so stays the reference to compare with."""
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
    found = rows()
    return dpo.make_dpo_trainer(
        policy, reference, tokenizer, found, found[:4], folder, CPU, seed=3, **settings | changes
    )


def logps(model, prompt, reply):
    """log π(reply | prompt), summed over the reply, from the full logits in double precision."""
    with torch.no_grad():
        each = F.log_softmax(model.eval()(torch.tensor([prompt + reply])).logits[0].double(), -1)
    return sum(float(each[len(prompt) + i - 1, token]) for i, token in enumerate(reply))


def by_hand(policy, reference, found, loss_type="sigmoid"):
    """Rafailov et al. 2023, equation 7; Azar et al. 2023, equation 17, with TRL's mean over the tokens of a reply."""
    losses = []
    for r in found:
        gains = {}
        for side in ("chosen_ids", "rejected_ids"):
            gain = logps(policy, r["prompt_ids"], r[side]) - logps(reference, r["prompt_ids"], r[side])
            gains[side] = gain / (len(r[side]) if loss_type == "ipo" else 1)
        gap = gains["chosen_ids"] - gains["rejected_ids"]
        kinds = {"hinge": max(0.0, 1 - BETA * gap), "ipo": (gap - 1 / (2 * BETA)) ** 2}
        losses.append(kinds.get(loss_type, math.log1p(math.exp(-BETA * gap))))
    return sum(losses) / len(losses)


def weights(model):
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def run(model, folder, tokenizer, **changes):
    logged: dict[tuple[str, int], float] = {}
    trainer = made(model, folder, tokenizer, **changes)
    fitted = dpo.fit_dpo(trainer, lambda metrics, step: logged.update({(k, step): v for k, v in metrics.items()}))
    return trainer.model, fitted, logged


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_the_first_loss_is_log_2_because_the_policy_is_the_reference(small_qwen2, tokenizer, tmp_path, kind):
    _, _, logged = run(small_qwen2, tmp_path, tokenizer, kind=kind, max_steps=1, logging_steps=1, warmup_steps=0)
    assert logged["loss", 1] == pytest.approx(math.log(2), abs=1e-6)
    assert logged["rewards/margins", 1] == pytest.approx(0, abs=1e-6)
    assert logged["eval_loss", 1] != pytest.approx(math.log(2), abs=1e-4)  # one step later it is another


@pytest.mark.parametrize("kind", ["lora", "none"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_trls_loss_is_the_one_computed_by_hand(small_qwen2, tokenizer, tmp_path, kind, loss_type):
    """After some steps, against the model as it was before training: so that is what the reference is."""
    trainer = made(small_qwen2, tmp_path, tokenizer, kind=kind, loss_type=loss_type)
    with torch.no_grad():
        for p in trainable_parameters(trainer.model).values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    theirs = trainer.evaluate()["eval_loss"]
    assert theirs == pytest.approx(by_hand(trainer.model, small_qwen2, rows()[:4], loss_type), rel=1e-4)
    assert theirs != pytest.approx(by_hand(small_qwen2, small_qwen2, rows()[:4], loss_type), rel=1e-3)


def test_no_dropout_and_no_second_adapter(small_qwen2, tokenizer, tmp_path):
    model = made(small_qwen2, tmp_path, tokenizer).model
    assert list(model.peft_config) == ["default"]
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0}
    assert trainable_parameters(model) and all(".default." in name for name in trainable_parameters(model))


def test_it_learns_the_order_and_keeps_the_best_weights(small_qwen2, tokenizer, tmp_path):
    model, fitted, logged = run(small_qwen2, tmp_path, tokenizer)
    held_out = {step: v for (name, step), v in logged.items() if name == "eval_loss"}
    assert sorted(held_out) == [3, 6, 7]  # and at the end
    assert fitted.best_loss == min(held_out.values()) < 0.9 * math.log(2)
    assert held_out[fitted.best_step] == fitted.best_loss
    assert by_hand(model, small_qwen2, rows()[:4]) == pytest.approx(fitted.best_loss, rel=1e-4)
    assert {step for name, step in logged if name == "rewards/margins"} == {2, 3, 4, 6, 7}  # at checkpoints too


def test_full_fine_tuning_changes_the_policy_and_not_the_reference(small_qwen2, tokenizer, tmp_path):
    trainer = made(small_qwen2, tmp_path, tokenizer, kind="none", learning_rate=1e-3)
    dpo.fit_dpo(trainer, lambda metrics, step: None)
    same = {name: torch.equal(p, small_qwen2.get_parameter(name)) for name, p in trainer.model.named_parameters()}
    assert not any(same.values())
    assert all(torch.equal(p, small_qwen2.get_parameter(name)) for name, p in trainer.ref_model.named_parameters())


def test_weights_that_ran_away_end_the_run(small_qwen2, tokenizer, tmp_path):
    with pytest.raises(MannersError, match=r"not finite at step \d: try a lower method.learning_rate"):
        run(small_qwen2, tmp_path, tokenizer, learning_rate=float("inf"), max_grad_norm=0.0)


# --- Restarts ---


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    from tests.conftest import small_qwen2

    model = small_qwen2.__wrapped__(tokenizer)
    return {kind: run(model, tmp_path_factory.mktemp(kind), tokenizer, kind=kind) for kind in ("lora", "none")}


CUTS = [("lora", cut) for cut in (1, 3, 4, 5, 7)] + [("none", cut) for cut in (4, 7)]


@pytest.mark.parametrize(("kind", "cut_after"), CUTS)
def test_cut_off_and_started_again(small_qwen2, tokenizer, tmp_path, monkeypatch, whole, kind, cut_after):
    """Saved every 2 steps, validated every 3, three steps an epoch: the cuts fall before, on and after each."""
    final, fitted, metrics = whole[kind]
    step_end, on_save = dpo.DPOCallback.on_step_end, dpo.DPOCallback.on_save

    def die(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == cut_after:
            raise Cut
        step_end(self, args, state, control, **more)

    def die_late(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        on_save(self, args, state, control, **more)
        if state.global_step == cut_after:
            raise Cut  # after the last step, before the run has ended

    with monkeypatch.context() as patch:
        patch.setattr(dpo.DPOCallback, *(("on_save", die_late) if cut_after == STEPS else ("on_step_end", die)))
        with pytest.raises(Cut):
            run(small_qwen2, tmp_path, tokenizer, kind=kind)
    assert (tmp_path / LAST).exists() == (cut_after > 1)
    again, refitted, logged = run(small_qwen2, tmp_path, tokenizer, kind=kind)
    assert refitted.resumed_from == {1: 0, 3: 2, 4: 2, 5: 4, 7: 7}[cut_after]
    assert (refitted.steps, refitted.best_step, refitted.best_loss) == (
        fitted.steps,
        fitted.best_step,
        fitted.best_loss,
    )
    one, two = weights(final), weights(again)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert logged == {key: value for key, value in metrics.items() if key[1] > refitted.resumed_from}


def test_a_checkpoint_half_written_is_never_met(small_qwen2, tokenizer, tmp_path, monkeypatch, whole):
    save = dpo.ResumableDPOTrainer._save_rng_state

    def die(self: Any, folder: str) -> None:
        if folder.endswith("-4"):  # weights and optimizer are written, and how far the run was is not
            raise Cut
        save(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(dpo.ResumableDPOTrainer, "_save_rng_state", die)
        with pytest.raises(Cut):
            run(small_qwen2, tmp_path, tokenizer)
    assert (tmp_path / "checkpoint-4").exists()
    assert (tmp_path / LAST).resolve() == (tmp_path / "checkpoint-2").resolve()
    again, refitted, _ = run(small_qwen2, tmp_path, tokenizer)
    assert refitted.resumed_from == 2
    one, two = weights(whole["lora"][0]), weights(again)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_checkpoint_is_kept_and_holds_no_pickled_weights(small_qwen2, tokenizer, tmp_path):
    run(small_qwen2, tmp_path, tokenizer)
    assert {p.name for p in tmp_path.iterdir()} == {BEST, LAST, f"checkpoint-{STEPS}"}
    assert not list(tmp_path.rglob("*.bin.index.json")) and not list(tmp_path.rglob("pytorch_model*"))
    assert (tmp_path / LAST / "adapter_model.safetensors").exists()
