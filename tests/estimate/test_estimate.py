"""The prediction by parts against real tensors, and what estimate=true and a full memory answer."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from rich.console import Console

from manners.config import compose as compose_module
from manners.errors import MannersError
from manners.fits import advice, answer, dividing, foresight, probe, settling, shapes
from manners.fits.ledger import CACHE, DECODING, Ledger
from manners.methods.sft import sft_loss
from manners.models import loading, lora
from manners.pipeline import run as pipeline
from manners.pipeline.dependencies import Stage
from manners.runtime import device
from manners.runtime.paths import CONF
from tests.configs import changed, compose

CPU = device.Device("cpu", "32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    out = tmp_path_factory.mktemp("qwen2")
    config = Qwen2Config(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)


def test_what_lives_is_counted_by_part_until_nothing_holds_it():
    """By hand: a weight of 8 × 16 floats, an input of 4 × 8, an output of 4 × 16, and a sum of one."""
    with Ledger(vocabulary=999) as ledger:
        weight = torch.ones(8, 16, requires_grad=True)
        with ledger.booking("activations", "forward"):
            x = torch.ones(4, 8)
            loss = (x @ weight).sum()  # the product itself is not kept: a sum needs no input to go back
        assert dict(ledger.live) == {"weights": 512, "activations": 128 + 4}
        assert dict(ledger.peaks["forward"]) == {"weights": 512, "activations": 128 + 256 + 4}
        with ledger.booking("activations", "backward"):
            loss.backward()
            ledger.rebook(weight.grad, "gradients")
        assert ledger.live["gradients"] == 512
        del x, loss
        assert +ledger.live == {"weights": 512, "gradients": 512}


def test_masks_are_real_so_that_only_what_is_trained_has_logits():
    chosen = torch.tensor([[True, False, True], [False, False, True]])
    with Ledger(vocabulary=50) as ledger, ledger.booking("activations", "head"):
        hidden = torch.ones(2, 3, 7)
        logits = hidden[chosen] @ torch.ones(7, 50)
        assert logits.shape == (3, 50)
        assert ledger.live["logits"] == 4 * 3 * 50
        assert logits.argmax(-1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["none", "lora"])
def test_what_is_kept_for_the_backward_pass_is_what_a_real_model_keeps(folder, kind, checkpointing):
    """Against the storages that autograd saves of a real model, its weights left out."""
    cfg = compose(f"adapter={kind}")
    cfg.model.name, cfg.method.gradient_checkpointing = folder, checkpointing
    a = cfg.adapter
    ids = torch.randint(0, 100, (3, 40))
    batch = {"input_ids": ids, "labels": torch.where(torch.arange(40) > 20, ids, -100)}

    real = lora.prepare_for_training(
        loading.load_model(folder), kind, a.r, a.lora_alpha, a.lora_dropout, a.target_modules, checkpointing
    ).train()
    weights = {p.untyped_storage()._cdata for p in (*real.parameters(), *real.buffers())}
    saved = {}

    def keep(tensor):
        if tensor.is_floating_point() and tensor.untyped_storage()._cdata not in weights:
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = sft_loss(real, batch)[0]
    kept = sum(s.nbytes() for s in saved.values())

    model = shapes.language_model(cfg, CPU, 0)
    with Ledger(model.config.vocab_size) as ledger:
        shapes.imagine(model, ledger)
        assert ledger.live["weights"] + ledger.live["adapter and new heads"] == sum(
            4 * p.numel() for p in real.parameters()
        ) + sum(4 * b.numel() for b in real.buffers())
        with ledger.booking("activations", "forward"):
            loss = sft_loss(model.train(), batch)[0]
        held = ledger.live["activations"] + ledger.live["logits"]
        assert loss.shape == ()
    assert held == pytest.approx(kept, rel=0.03)


def test_a_base_in_four_bits_takes_what_really_quantized_weights_take(folder):
    cfg = compose("adapter=qlora")
    cfg.model.name = folder
    real = loading.load_model(folder, quantization="nf4")
    quantized = [p for p in real.parameters() if p.dtype == torch.uint8]
    states = [p.quant_state for p in quantized]
    packed = sum(
        p.numel() + s.absmax.numel() + 4 * s.state2.absmax.numel() for p, s in zip(quantized, states, strict=True)
    )
    rest = sum(4 * p.numel() for p in real.parameters() if p.dtype != torch.uint8)
    model = shapes.language_model(cfg, CPU, 0)
    with Ledger(model.config.vocab_size) as ledger:
        shapes.imagine(model, ledger)
        assert ledger.live["weights"] == pytest.approx(packed + rest, rel=0.01)
        assert ledger.live["adapter and new heads"] == sum(
            4 * p.numel() for n, p in model.named_parameters() if "lora_" in n
        )


def test_holes_grow_with_what_comes_and_goes_and_with_what_decoding_holds_beside_its_cache():
    """By hand: 0.4 × (100 + 50), and the 7 of the phase that decodes most; the cache is written in place."""
    training = Counter({"weights": 1000, "activations": 100, "logits": 50})
    sampling = Counter({"weights": 1000, "activations": 20, CACHE: 30, DECODING: 7})
    assert foresight.holes(training, {"a": training, "b": sampling, "c": Counter({CACHE: 36, DECODING: 5})}) == 60 + 7


def test_remedies_come_cheapest_first_and_keep_the_batch():
    few = ["method.per_device_train_batch_size=4", "method.per_device_eval_batch_size=2", "evaluation.batch_size=9"]
    found = list(advice.remedies(changed(*few)))
    assert [f["hardware.parts"] for f in found if "hardware.parts" in f] == ["2", "4", "8"]
    kinds = list(dict.fromkeys(next(iter(f)) for f in found))
    assert kinds == [
        "hardware.parts", "method.gradient_checkpointing", "method.optim", "adapter", "method.max_length",
    ]  # fmt: skip
    again = advice.remedies(changed(*few, "hardware.parts=4"))
    assert next(again) == {"hardware.parts": "8"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_full_memory_is_answered_with_overrides(error):
    with pytest.raises(MannersError) as found, advice.out_of_memory(compose()):
        raise error
    words = str(found.value)
    assert "\n  hardware.parts=2\n" in words
    assert "method.gradient_checkpointing=true" in words
    assert "adapter=qlora" in words


def test_other_errors_are_not_taken_for_a_full_memory():
    with pytest.raises(RuntimeError, match="shapes"), advice.out_of_memory(compose()):
        raise RuntimeError("shapes do not match")


def test_a_run_that_is_out_of_memory_ends_in_one_sentence(monkeypatch):
    def train(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline, "train", train)
    with pytest.raises(MannersError, match="out of memory in method=sft of tiny"):
        pipeline.run(Stage(compose(), []), [])


@pytest.fixture
def asked(folder, tmp_path, monkeypatch):
    """estimate=true of a small run, in a machine of so many bytes; the probe's result is given."""
    monkeypatch.setattr(probe, "probe", lambda *_: probe.Measured(10**9, 2 * 10**9, 0.5))
    console = Console(record=True, width=200)
    overrides = [
        "adapter=none", f"model.name={folder}", f"output_dir={tmp_path}", "hardware.accelerator=cpu",
        "dataset.max_rows=40",
        "method.per_device_train_batch_size=16", "method.per_device_eval_batch_size=2", "evaluation.batch_size=4",
    ]  # fmt: skip

    def ask(room, *more):
        monkeypatch.setattr(foresight, "memory", lambda _: (room, room))
        cfg = compose_module.compose("train", [*overrides, *more, "estimate=true"])
        fits = answer.show(Stage(cfg, [*overrides, *more]), [], console)
        return fits, console.export_text()

    compose()  # registers the schemas
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):  # as within train.py
        yield ask
    assert list(tmp_path.iterdir()) == []


def test_fit_says_how_much_a_run_takes_and_how_long_and_what_would_make_it_fit(asked, monkeypatch):
    monkeypatch.setattr(probe, "resident", lambda: 10**9)
    fits, text = asked(10**11)
    assert fits
    assert "measured, in two steps on the longest rows  2.00" in text
    assert "4 steps of 0.50 s" in text  # 1.6 epochs of 40 rows in batches of 16
    assert text.rstrip().endswith("it fits")
    foreseen = float(text.split("foreseen")[1].split()[0])
    libraries = (10**9 + foresight.AT_WORK) / 1e9
    room = libraries + 0.8 * (foreseen - libraries)  # half the rows at a time spare nearly half of what is above them
    fits, text = asked(int(room * 1e9), "hardware.parts=1")
    assert not fits
    assert "the probe was not run" in text
    told = text.rstrip().splitlines()[-1]
    words, size = told.split("  (")
    assert words == "add to the command: hardware.parts=2"
    assert float(size.split()[0]) <= room
    _, text = asked(int(room * 1e9))  # by itself it does what it would say
    assert "with its rows read in 2 parts, as hardware.parts=auto has it" in text
    assert float(text.split("foreseen")[1].split()[0]) <= room


def test_a_run_reads_its_rows_in_the_fewest_parts_that_fit(monkeypatch):
    """Of a machine that one of four parts just fits into; a small model is not looked at, and a number is obeyed."""
    cfg, said = changed("hardware.accelerator=cpu"), []
    stage = SimpleNamespace(cfg=cfg)
    foreseen = lambda lean, *_: SimpleNamespace(total=1000 // lean.hardware.parts)  # noqa: E731
    monkeypatch.setattr(foresight, "foresee", foreseen)
    monkeypatch.setattr(foresight, "memory", lambda _: (250, 0))
    assert settling.settle(stage, CPU, [], said.append) == 1 and not said
    monkeypatch.setattr(loading, "weight_bytes", lambda _: 10**9)
    assert settling.settle(stage, CPU, [], said.append) == 4
    assert said[0].startswith("rows are read in 4 parts")
    monkeypatch.setattr(foresight, "memory", lambda _: (10, 0))  # not even one row at a time fits
    assert settling.settle(stage, CPU, [], said.append) == 1
    assert "estimate=true" in said[1]
    cfg.hardware.parts = 3
    assert settling.settle(stage, CPU, [], said.append) == 3


def test_everything_that_reads_rows_reads_fewer():
    given = ("method.batch_size=48", "method.microbatch_tokens=2048", "evaluation.batch_size=64")
    lean = dividing.apart(compose("method=ppo", *given), 16)
    assert (lean.method.microbatch_tokens, lean.evaluation.batch_size) == (dividing.FEWEST, 4)
    assert lean.method.batch_size == 48  # the optimizer's is the experiment's
    lean = dividing.apart(changed("method.per_device_eval_batch_size=24"), 16)
    assert (lean.method.per_device_eval_batch_size, lean.method.per_device_train_batch_size) == (1, 16)
    dpo = dividing.apart(compose("method=dpo", "method.per_device_train_batch_size=12"), 8).method
    assert (dpo.per_device_train_batch_size, dpo.gradient_accumulation_steps) == (3, 4)


def test_the_weights_of_a_model_are_weighed_where_they_are(folder):
    assert loading.weight_bytes(folder) == (Path(folder) / "model.safetensors").stat().st_size
    assert loading.weight_bytes("nobody/has-this-model") == math.inf


@pytest.mark.long
def test_two_real_steps_take_what_was_foreseen(folder):
    """The least case: the libraries are most of it. Nine larger ones: experiments/memory.py."""
    small = ["dataset.max_rows=30", "evaluation.batch_size=4", "evaluation.max_new_tokens=4", "evaluation.prompts=4"]
    cfg = compose("adapter=none", "hardware.accelerator=cpu", f"model.name={folder}", *small)
    stage = Stage(cfg, [])
    measured = probe.probe(dividing.apart(cfg, 1), stage.splits, None)
    found = foresight.foresee(dividing.apart(cfg, 1), stage, CPU, None)
    foreseen = found.total - found.parts[foresight.RUNTIME] + measured.baseline + foresight.AT_WORK
    assert foreseen == pytest.approx(measured.peak, rel=0.15)
    assert measured.seconds > 0


def test_fit_refuses_methods_that_it_does_not_know():
    with pytest.raises(MannersError, match="estimate=true answers for method=sft"):
        answer.show(Stage(SimpleNamespace(method=SimpleNamespace(name="dpo")), []), [], Console())
