"""The loss, the schedule and the gradient of supervised fine-tuning, against independent computations."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from manners.data.batching import ResumableBatches, collate, validation_batches
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample
from manners.errors import MannersError
from manners.methods.lightning import schedule
from manners.methods.lightning_fit import fit_with_lightning
from manners.methods.sft import SFTModule, sft_loss
from manners.models.lora import prepare_for_training, trainable_parameters
from manners.runtime.device import Device

CPU = Device("cpu", "32")
together = partial(collate, pad=0)


def examples(count=12, vocab=300):
    """Random conversations of varied length; the first half of each is context."""
    g = torch.Generator().manual_seed(7)
    found = []
    for _ in range(count):
        n = int(torch.randint(6, 20, (1,), generator=g))
        ids = torch.randint(5, vocab, (n,), generator=g).tolist()
        found.append(TokenizedExample(ids, [IGNORE_INDEX] * (n // 2) + ids[n // 2 :]))
    return found


def module(model, total=8, log=lambda metrics, step: None, **changes):
    settings = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "accumulate": 1,
        "logging_steps": 1,
    }
    return SFTModule(model, log, total, **(settings | changes))


def run(model, folder, steps=8, size=4, accumulate=1, rows=None, eval_steps=3, save_steps=2, patience=0, parts=1,
        **changes):  # fmt: skip
    rows = rows or examples()
    folder.mkdir(exist_ok=True)
    batches = ResumableBatches(rows, size, together, steps, accumulate, seed=3, by_length=True, parts=parts)
    m = module(model, total=steps, accumulate=batches.accumulate, **changes)
    return fit_with_lightning(
        m, batches, validation_batches(rows[:4], 2, together), folder, CPU, eval_steps, save_steps, patience
    ), m


def weights(model):
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def test_the_loss_is_that_of_the_full_logits_on_the_trained_tokens(small_qwen2):
    batch = collate(examples(5), pad=0)
    nll, correct, trained = sft_loss(small_qwen2, batch)
    logits = small_qwen2(batch["input_ids"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    by_hand = [
        -F.log_softmax(logits[b, t].double(), -1)[targets[b, t]]
        for b in range(targets.shape[0])
        for t in range(targets.shape[1])
        if targets[b, t] != IGNORE_INDEX
    ]
    assert trained == len(by_hand)
    assert nll.item() == pytest.approx(float(sum(by_hand)), rel=1e-5)
    assert 0 <= correct <= trained


def test_padding_changes_no_loss(small_qwen2):
    short, long = sorted(examples(), key=lambda e: len(e.input_ids))[:: len(examples()) - 1]
    alone = sft_loss(small_qwen2, collate([short], 0))[0] + sft_loss(small_qwen2, collate([long], 0))[0]
    together = sft_loss(small_qwen2, collate([short, long], pad=short.input_ids[-1]))[0]  # padded with a real token
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "accumulate", "parts"), [(6, 1, 1), (3, 2, 1), (2, 3, 1), (1, 6, 1), (6, 1, 3), (6, 1, 4), (3, 2, 2)]
)
def test_one_step_is_the_same_whatever_the_micro_batch(small_qwen2, tmp_path, size, accumulate, parts):
    """Six rows with unequal numbers of trained tokens: a mean of means would differ."""
    rows = examples(6)
    before = weights(small_qwen2)
    how = {"size": size, "accumulate": accumulate, "parts": parts}
    run(small_qwen2, tmp_path / "a", steps=1, rows=rows, max_grad_norm=0.0, **how)
    nll = {name: p - before[name] for name, p in weights(small_qwen2).items()}
    torch.manual_seed(0)
    reference = type(small_qwen2)(small_qwen2.config)
    reference.load_state_dict(before, strict=False)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2 / 3, weight_decay=0.0)  # the first warm-up step
    loss, _, trained = sft_loss(reference, collate(rows, 0))
    (loss / trained).backward()
    optimizer.step()
    for name, p in trainable_parameters(reference).items():
        assert torch.allclose(p - before[name], nll[name], atol=2e-5), name


def test_the_schedule_rises_then_falls_to_zero():
    cosine, linear = schedule("cosine", 4, 104), schedule("linear", 4, 104)
    assert [cosine(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert cosine(4) == linear(4) == 1.0
    assert cosine(54) == pytest.approx(0.5)  # half-way
    assert cosine(29) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert linear(29) == pytest.approx(0.75)
    assert cosine(104) == pytest.approx(0.0)
    assert linear(104) == pytest.approx(0.0)
    assert schedule("constant", 0, 10)(9) == 1.0


def test_weight_decay_spares_norms_and_biases(small_qwen2):
    groups = module(small_qwen2, weight_decay=0.1).configure_optimizers()["optimizer"].param_groups
    decays = {g["weight_decay"]: {p.ndim for p in g["params"]} for g in groups}
    assert decays == {0.1: {2}, 0.0: {1}}


def test_gradients_are_clipped_and_the_norm_before_is_logged(small_qwen2, tmp_path):
    logged = []
    run(small_qwen2, tmp_path / "a", steps=1, log=lambda m, s: logged.append(m), max_grad_norm=1e-9, learning_rate=1.0)
    norm = next(m["train/grad_norm"] for m in logged if "train/grad_norm" in m)
    assert norm > 1e-3  # the norm itself, not the clipped one


def test_lora_trains_every_linear_layer_and_starts_as_the_base(small_qwen2):
    ids = torch.arange(5, 25)[None]
    before = small_qwen2(ids).logits
    model = prepare_for_training(small_qwen2, "lora", 4, 8, 0.0, "all-linear")
    assert torch.equal(model(ids).logits, before)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable_parameters(model)}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all("lora_" in name for name in trainable_parameters(model))


def test_gradient_checkpointing_changes_no_gradient(small_qwen2):
    batch = collate(examples(4), 0)
    found = []
    for checkpointing in (False, True):
        model = prepare_for_training(
            small_qwen2, "none", 1, 1, 0.0, "all-linear", gradient_checkpointing=checkpointing
        ).train()
        model.zero_grad()
        sft_loss(model, batch)[0].backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-6) for n in found[0])
    assert model.is_gradient_checkpointing


def test_the_best_weights_are_kept_not_the_last(small_qwen2, tmp_path):
    """A learning rate that ruins the model: the best validation is an early one."""
    fitted, m = run(small_qwen2, tmp_path / "a", steps=12, learning_rate=3.0, lr_scheduler_type="constant")
    assert fitted.best_step < fitted.steps == 12
    m.eval()
    sums = [sft_loss(m.model, b) for b in validation_batches(examples()[:4], 2, together)]
    loss = sum(float(s[0]) for s in sums) / sum(s[2] for s in sums)
    assert loss == pytest.approx(fitted.best_loss, rel=1e-4)


def test_early_stopping_ends_a_run_that_no_longer_improves(small_qwen2, tmp_path):
    fitted, _ = run(
        small_qwen2, tmp_path / "a", steps=60, learning_rate=3.0, lr_scheduler_type="constant", eval_steps=2, patience=2
    )
    assert fitted.steps < 60


def test_a_gradient_that_is_no_number_stops_the_run(small_qwen2, tmp_path):
    with torch.no_grad():
        small_qwen2.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(MannersError, match="step 0"):
        run(small_qwen2, tmp_path / "a")
