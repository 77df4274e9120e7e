"""Device and precision, on machines with other devices than this one."""

import pytest
import torch

from manners.config import validate
from manners.errors import MannersError
from manners.runtime import device
from tests.configs import compose


@pytest.fixture
def machine(monkeypatch):
    def with_devices(cuda=False, mps=False, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return with_devices


@pytest.mark.parametrize(
    "devices, kind, precision",
    [
        ({}, "cpu", "32"),
        ({"mps": True}, "mps", "32"),
        ({"cuda": True, "mps": True}, "cuda", "bf16"),
        ({"cuda": True, "bf16": False}, "cuda", "32"),
    ],
)
def test_auto_is_the_best_device_in_a_safe_precision(machine, devices, kind, precision):
    machine(**devices)
    resolved = device.resolve_device("auto", "auto", None)
    assert (resolved.kind, resolved.precision) == (kind, precision)


def test_fp16_is_for_cuda_only(machine):
    machine(mps=True)
    for kind in ("mps", "cpu"):
        with pytest.raises(MannersError, match=f"fp16 training on {kind} loses small gradients"):
            device.resolve_device(kind, "fp16", None)
    machine(cuda=True)
    assert device.resolve_device("auto", "fp16", None).lightning_precision == "16-mixed"


@pytest.mark.parametrize("devices, kind", [({}, "cpu"), ({"mps": True}, "mps")])
def test_fp16_recipe_runs_in_32_bits_without_a_cuda_gpu(machine, devices, kind):
    machine(**devices)
    h = compose("experiment=polite_helper").hardware
    assert (h.accelerator, h.precision) == ("auto", "fp16")
    resolved = device.resolve_device(h.accelerator, h.precision, None)
    assert (resolved.kind, resolved.precision) == (kind, "32")


def test_mac_trains_in_32_bits_without_bitsandbytes(machine):
    machine(mps=True)
    cfg = compose("experiment=strictbot_sft", "hardware=mps")
    resolved = device.resolve_device(cfg.hardware.accelerator, cfg.hardware.precision, None)
    assert (resolved.kind, resolved.lightning_precision, cfg.method.optim) == ("mps", "32-true", "adamw_torch_fused")
    with pytest.raises(MannersError, match="no 4-bit kernels for Apple's GPU"):
        validate.validate_config(compose("experiment=strictbot_sft", "hardware=mps", "adapter=qlora"))


def test_missing_device_is_refused(machine):
    machine()
    with pytest.raises(MannersError, match=r"hardware.accelerator=cuda: torch .* finds no such device"):
        device.resolve_device("cuda", "auto", None)


def test_eight_bit_optimizer_is_refused_on_a_mac():
    with pytest.raises(MannersError, match=r"method\.optim=adamw"):
        validate.validate_config(compose("hardware=mps", "method.optim=paged_adamw_8bit"))
