"""The analytic memory count against the weights and saved tensors of real models."""

import gc
import weakref
from itertools import product

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
)

from manners.models import loading, lora
from manners.models.logprobs import token_nll
from manners.models.memory import ADAPTER, GRADIENTS, LOGITS, OPTIMIZER, WEIGHTS, ModelShape, TrainingSetup
from manners.runtime.device import Device

CPU = Device("cpu", "32")
SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, vocab_size=3072, num_key_value_heads=2),
    "qwen2-tied": Qwen2Config(**SIZES, vocab_size=3072, num_key_value_heads=2, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, vocab_size=3072),
    "gpt_neox": GPTNeoXConfig(**SIZES, vocab_size=3072),
    "gpt2": GPT2Config(vocab_size=3072, n_embd=256, n_layer=4, n_head=4),
    "bert": BertConfig(**SIZES, vocab_size=3072),
}
ROWS, LENGTH, TARGETS = 4, 48, 20
TASKS = {True: "CAUSAL_LM", False: "SEQ_CLS"}


def build(name):
    """The model, and whether it has a language-model head."""
    torch.manual_seed(0)
    if name == "bert":
        return AutoModelForSequenceClassification.from_config(CONFIGS[name]), False
    return AutoModelForCausalLM.from_config(CONFIGS[name]), True


def forward(model, has_lm_head):
    ids = torch.randint(5, 3000, (ROWS, LENGTH))
    if not has_lm_head:
        return model(ids).logits.sum()
    loss_mask = torch.zeros(ROWS, LENGTH - 1, dtype=torch.bool)
    loss_mask[:, :TARGETS] = True
    return token_nll(model, ids, loss_mask)[0].sum()


@pytest.mark.parametrize("name", CONFIGS)
def test_number_of_parameters_is_that_of_the_model(name):
    model, has_lm_head = build(name)
    count = ModelShape.from_config(model.config, has_lm_head).num_parameters
    assert count == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.03)


@pytest.mark.parametrize("name", CONFIGS)
def test_states_of_a_lora_are_those_of_the_model(name):
    model, has_lm_head = build(name)
    setup = TrainingSetup(ModelShape.from_config(model.config, has_lm_head), CPU, lora_rank=16)
    model = lora.prepare_for_training(model, "lora", 16, 32, 0.0, "all-linear", task_type=TASKS[has_lm_head])
    adapter = sum(4 * p.numel() for n, p in model.named_parameters() if "lora_" in n)
    states = setup.states()
    # GPT-2 has one matrix for queries, keys and values; BERT also adapts its pooler.
    rel = {"gpt2": 0.25, "gpt_neox": 0.25, "bert": 0.05}.get(name, 1e-9)
    assert states[ADAPTER] == pytest.approx(adapter, rel=rel)
    assert (states[GRADIENTS], states[OPTIMIZER]) == (states[ADAPTER], 2 * states[ADAPTER])


class Saved:
    """A tensor that autograd holds."""

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name, kind", [case for case in product(CONFIGS, ["none", "lora", "dora"]) if case not in
    [("gpt2", "dora")]])  # fmt: skip  # peft keeps a copy of each Conv1D's weight, for the norms
def test_activations_are_the_tensors_that_autograd_saves(name, kind, checkpointing, precision):
    model, has_lm_head = build(name)
    rank, dora, kind = 0 if kind == "none" else 16, kind == "dora", "none" if kind == "none" else "lora"
    shape = ModelShape.from_config(model.config, has_lm_head)
    options = {"gradient_checkpointing": checkpointing, "use_dora": dora}
    setup = TrainingSetup(shape, Device("cpu", precision), rank, **options)
    options["task_type"] = TASKS[has_lm_head]
    model = lora.prepare_for_training(model, kind, 16, 32, 0.0, "all-linear", **options).train()
    weights = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    saved = weakref.WeakSet()  # what is computed with a gradient and then dropped, as DoRA's norms, is not kept

    def save(tensor):
        saved.add(box := Saved(tensor))
        return box

    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda box: box.tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss = forward(model, has_lm_head)
    gc.collect()  # of DoRA's norms
    storages = {s._cdata: s for s in (box.tensor.untyped_storage() for box in saved)}
    measured = sum(s.nbytes() for data, s in storages.items() if data not in weights)
    assert loss.shape == ()

    tokens, layer = ROWS * LENGTH, setup.layer_activations(LENGTH)
    # What the forward pass saves: the gradients of the layer at work, and one layer computed anew, are not part of it.
    kept = tokens * shape.layers * (shape.hidden * 4 if checkpointing else layer)
    head = ROWS * TARGETS * (setup.matmul_bytes * shape.vocab + 4 * shape.hidden) + 2 * tokens * 4 * shape.hidden
    head = head if has_lm_head else 3 * tokens * 4 * shape.hidden  # of the embeddings, where there is no head
    head += 2 * shape.hidden * shape.vocab * (precision == "bf16" and checkpointing and has_lm_head)
    casts = 0 if checkpointing else setup.cast_weights()
    assert kept + casts + head == pytest.approx(measured, rel=0.15)


def test_logits_are_counted_at_the_start_of_the_backward_pass():
    setup = TrainingSetup(ModelShape.from_config(CONFIGS["qwen2"]), CPU)
    assert setup.training_step(2, 10, targets=7)[LOGITS] == 2 * 4 * 7 * 3072


def test_quantized_weights_take_what_bitsandbytes_takes(tmp_path):
    AutoModelForCausalLM.from_config(CONFIGS["qwen2"]).save_pretrained(tmp_path)
    model = loading.load_model(str(tmp_path), quantization="nf4")
    quantized = [p for p in model.parameters() if p.dtype == torch.uint8]
    states = [p.quant_state for p in quantized]
    packed = sum(
        p.numel() + s.absmax.numel() + 4 * s.state2.absmax.numel() for p, s in zip(quantized, states, strict=True)
    )
    rest = sum(4 * p.numel() for p in model.parameters() if p.dtype != torch.uint8)
    setup = TrainingSetup(ModelShape.from_config(CONFIGS["qwen2"]), CPU, lora_rank=16, quantized=True)
    assert setup.states()[WEIGHTS] == pytest.approx(packed + rest, rel=0.01)
