"""fp16 with a scaled loss: gradients are clipped as in 32 bits, and an overflow skips its step. Tried on a CPU."""

import copy

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision

from manners.errors import MannersError
from manners.methods import lightning
from tests.methods.test_sft import run, weights


@pytest.fixture
def use_fp16(monkeypatch):
    """Train in fp16 with a gradient scaler, as Lightning does on a GPU."""

    def use(init_scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)

        def trainer(precision, plugins, **options):
            return Trainer(plugins=[*plugins, MixedPrecision("16-mixed", "cpu", scaler)], **options)

        monkeypatch.setattr(lightning.L, "Trainer", trainer)
        return scaler

    return use


def train(model, folder, steps=4, **options):
    """The weights after training, and the logged norms of the gradient."""
    logged = []
    run(model, folder, steps, log=lambda metrics, step: logged.append(metrics), eval_steps=steps, **options)
    return weights(model), [m["train/grad_norm"] for m in logged if "train/grad_norm" in m]


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "paged_adamw_8bit"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_fp16_clips_the_unscaled_gradient(small_qwen2, tmp_path, use_fp16, optim, accumulate):
    """Clipped to 1e-7 the gradient is of the order of Adam's epsilon, so that its scale shows in the weights."""
    options = {"optim": optim, "accumulate": accumulate, "max_grad_norm": 1e-7, "batch_size": 2}
    start, model = weights(small_qwen2), copy.deepcopy(small_qwen2)
    expected, norms = train(small_qwen2, tmp_path / "a", **options)
    use_fp16(2.0**12)
    trained, fp16_norms = train(model, tmp_path / "b", **options)
    assert fp16_norms == pytest.approx(norms, rel=0.05)
    moved, error = (
        sum(float((after[name] - other[name]).abs().sum()) for name in start)
        for after, other in ((expected, start), (trained, expected))
    )
    assert moved > 0 and error < 0.1 * moved


def test_fp16_overflow_skips_a_step_and_halves_the_scale(small_qwen2, tmp_path, use_fp16):
    scaler = use_fp16(2.0**40)
    _, norms = train(copy.deepcopy(small_qwen2), tmp_path / "a", steps=6)
    assert scaler.get_scale() == 2.0**34 and set(norms) == {0.0}  # six overflows
    scaler = use_fp16(2.0**10)
    start = weights(small_qwen2)
    trained, norms = train(small_qwen2, tmp_path / "b", steps=2)
    assert scaler.get_scale() == 2.0**10 and all(0 < norm < 100 for norm in norms)
    assert any(not torch.equal(trained[name], start[name]) for name in start)


def test_fp16_gradient_that_is_never_finite_ends_the_run(small_qwen2, tmp_path, use_fp16):
    with torch.no_grad():
        small_qwen2.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    use_fp16(2.0)
    with pytest.raises(MannersError, match="the gradient is nan at step 2"):
        train(small_qwen2, tmp_path / "a", steps=8)
