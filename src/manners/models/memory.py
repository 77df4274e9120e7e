"""The memory of a training step, counted from the model's config alone: no weights, no tensors, milliseconds.

What a layer keeps for the backward pass was read off the tensors that autograd saves: ``tests/models/test_memory.py``
compares the count with Qwen2, Llama, GPT-NeoX, GPT-2 and BERT. Attention counts as a fused kernel that keeps no scores;
where dropout on the scores rules that out on a CPU, they are counted. What a GPU's kernels keep besides is not known.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from manners.runtime.device import Device

WEIGHTS, ADAPTER, GRADIENTS, OPTIMIZER = "weights", "adapter", "gradients", "optimizer states"
ACTIVATIONS, LOGITS, CACHE, REFERENCE = "activations", "logits", "KV cache", "frozen reference"
REWARD_MODEL, RUNTIME, FRAGMENTATION = "reward model", "runtime", "fragmentation"
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight: 4 bits, a byte for each 64, 4 bytes for each 256 of those
STATE_BYTES = {"adamw_torch_fused": 8.0, "paged_adamw_8bit": 2 + 8 / 256}  # two moments of each trained weight
CUDA_CONTEXT = 5 * 10**8  # bytes that CUDA and its kernels take before anything is loaded, about
LOADED_BY_TRAINING = 45 * 10**6  # bytes of code and buffers that the libraries load at a first step; measured
# On a CPU the C library keeps what is freed in the middle of its heap, and little of what comes next fits there:
# measured (experiments/memory.md) as this part of what comes and goes in a step.
FRAGMENTED = 0.4


@dataclass(frozen=True)
class ModelShape:
    """The sizes in a transformer's config that its memory depends on."""

    layers: int
    hidden: int
    mlp: int
    attention: int  # heads × head size
    key_value: int  # the same of keys and values
    heads: int
    vocab: int
    embeddings: int  # weights of the embeddings, and of an output layer that is not tied to them
    gated: bool  # whether the MLP has a gate
    mlp_tensors: int  # of the MLP's width that a layer keeps
    norm_tensors: int  # of the hidden size that the norms of a layer keep, if their weights are trained
    rms_norm: bool
    fused_qkv: bool
    dropout: bool
    has_lm_head: bool

    @classmethod
    def from_config(cls, config: Any, has_lm_head: bool = True, num_tokens: int = 0) -> "ModelShape":
        """Read a transformers config. ``num_tokens`` is the tokenizer's size, where tokens were added."""
        c = config.get_text_config()
        heads, hidden, vocab = c.num_attention_heads, c.hidden_size, max(c.vocab_size, num_tokens)
        head_size = getattr(c, "head_dim", None) or hidden // heads
        activation = getattr(c, "hidden_act", None) or getattr(c, "activation_function", "gelu")
        gated, rms_norm = activation in ("silu", "swish"), hasattr(c, "rms_norm_eps")
        positions = 0 if getattr(c, "rope_parameters", None) else c.max_position_embeddings
        tables = 2 if has_lm_head and not c.tie_word_embeddings else 1
        dropouts = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob")
        return cls(
            layers=c.num_hidden_layers,
            hidden=hidden,
            mlp=getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * hidden,
            attention=heads * head_size,
            key_value=(getattr(c, "num_key_value_heads", None) or heads) * head_size,
            heads=heads,
            vocab=vocab,
            embeddings=hidden * (tables * vocab + positions),
            gated=gated,
            mlp_tensors=4 if gated else 5 if activation == "gelu_new" else 2,
            norm_tensors=4 if rms_norm else 1 if getattr(c, "use_parallel_residual", False) else 2,
            rms_norm=rms_norm,
            fused_qkv=c.model_type in ("gpt2", "gpt_neox"),
            dropout=any(getattr(c, name, 0) for name in dropouts),
            has_lm_head=has_lm_head,
        )

    @property
    def linear_sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear modules of a layer."""
        h, a, kv, m = self.hidden, self.attention, self.key_value, self.mlp
        return [(h, a), (h, kv), (h, kv), (a, h), *[(h, m)] * (2 if self.gated else 1), (m, h)]

    @property
    def linear_weights(self) -> int:
        """Weights of the linear modules of all layers."""
        return self.layers * sum(i * o for i, o in self.linear_sizes)

    @property
    def num_parameters(self) -> int:
        """Weights of the model, biases left out."""
        return self.linear_weights + self.embeddings + 2 * self.layers * self.hidden


@dataclass(frozen=True)
class TrainingSetup:
    """What the memory of a training step depends on besides its batch."""

    shape: ModelShape
    device: Device
    lora_rank: int = 0  # of an adapter on every linear module; 0 is full fine-tuning
    quantized: bool = False
    gradient_checkpointing: bool = False
    optim: str = "adamw_torch_fused"
    shards: int = 1  # devices that share the weights and what belongs to them
    use_dora: bool = False

    @property
    def trainable(self) -> int:
        """Weights that training changes."""
        s = self.shape
        return self.lora_rank * s.layers * sum(i + o for i, o in s.linear_sizes) or s.num_parameters

    @property
    def residual_bytes(self) -> int:
        """Bytes of a number between the layers, and of a weight that is not quantized."""
        return 2 if self.quantized and self.device.precision == "bf16" else 4

    @property
    def matmul_bytes(self) -> int:
        """Bytes of a number in a matrix product."""
        return 4 if self.device.precision == "32" else 2

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights, without an adapter."""
        linear = self.shape.linear_weights
        per_linear = NF4_BYTES if self.quantized else self.residual_bytes
        return round(linear * per_linear + (self.shape.num_parameters - linear) * self.residual_bytes)

    def states(self) -> Counter[str]:
        """Bytes of what stays from step to step: weights, adapter, gradients and optimizer states."""
        adapter = 4 * self.trainable if self.lora_rank else 0
        optimizer = round(STATE_BYTES[self.optim] * self.trainable)
        sizes = {WEIGHTS: self.weight_bytes, ADAPTER: adapter, GRADIENTS: 4 * self.trainable, OPTIMIZER: optimizer}
        return Counter({part: size // self.shards for part, size in sizes.items()})

    def layer_activations(self, length: int) -> int:
        """Bytes that one layer keeps for the backward pass, for each token of rows of ``length`` tokens."""
        s, low_precision = self.shape, self.matmul_bytes < 4
        norms = s.norm_tensors // 2 if self.lora_rank and s.rms_norm else s.norm_tensors
        hidden = 4 if s.rms_norm else 5
        if low_precision:  # each linear module keeps a cast input of its own
            hidden = 5 if s.fused_qkv else 7 + bool(self.lora_rank)
        narrow = len(s.linear_sizes) * self.lora_rank
        if self.use_dora:  # it multiplies the base's output, less a bias of 32 bits, and the update
            narrow += (3 if low_precision and not s.rms_norm else 2) * sum(o for _, o in s.linear_sizes)
        numbers = (hidden + s.dropout) * s.hidden + 2 * s.key_value + s.mlp_tensors * s.mlp + narrow
        scores = 3 * 4 * s.heads * length if s.dropout and self.device.kind == "cpu" else 0
        return norms * s.hidden * self.residual_bytes + numbers * self.matmul_bytes + scores

    def activations(self, rows: int, length: int) -> int:
        """Bytes kept for the backward pass of ``rows`` × ``length`` tokens, without logits."""
        s, tokens, layer = self.shape, rows * length, self.layer_activations(length)
        if self.gradient_checkpointing:  # the inputs of all layers, and one layer computed anew
            kept = tokens * (s.layers * s.hidden * self.residual_bytes + layer)
        else:
            kept = tokens * s.layers * layer
        gradients = tokens * (2 * s.hidden + 2 * s.mlp) * self.matmul_bytes  # of the layer that backward has come to
        return kept + gradients + self.cast_weights()

    def cast_weights(self) -> int:
        """Bytes of the weights in the precision of the forward pass, where they are stored in 32 bits or in 4."""
        s = self.shape
        largest = max(i * o for i, o in s.linear_sizes)
        if self.quantized:
            return self.residual_bytes * largest
        if self.matmul_bytes == 4:
            return 0
        layers = 1 if self.gradient_checkpointing and self.lora_rank else s.layers
        return 2 * (s.linear_weights // s.layers * layers + s.has_lm_head * s.hidden * s.vocab)

    def logits(self, targets: int) -> int:
        """Bytes of the logits of ``targets`` tokens in the loss, and of their gradient."""
        return 2 * self.matmul_bytes * targets * self.shape.vocab

    def cache(self, rows: int, length: int) -> int:
        """Bytes of keys and values while ``rows`` × ``length`` tokens are generated."""
        return rows * length * 2 * self.shape.layers * self.shape.key_value * self.matmul_bytes

    def training_step(self, rows: int, length: int, targets: int) -> Counter[str]:
        """Bytes by part at the fullest moment of a step on ``rows`` × ``length`` tokens, ``targets`` with logits."""
        return self.states() + Counter({ACTIVATIONS: self.activations(rows, length), LOGITS: self.logits(targets)})


def runtime_parts(device: Device, parts: Counter[str]) -> Counter[str]:
    """Bytes beside the tensors in ``parts``: Python with its libraries, or CUDA; and fragmentation on a CPU."""
    if device.kind == "cuda":
        return Counter({RUNTIME: CUDA_CONTEXT})
    return Counter(
        {
            RUNTIME: int(psutil.Process().memory_info().rss) + LOADED_BY_TRAINING,
            FRAGMENTATION: round(FRAGMENTED * (parts[ACTIVATIONS] + parts[LOGITS])),
        }
    )


def device_memory(device: Device) -> tuple[int, int]:
    """Bytes in all and free: of the GPU, else of the machine or of the container that this process is in."""
    if device.kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        return total, free
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, int(text)), min(free, int(text) - used)
    return total, free
