"""Log-probabilities of selected tokens, without computing the logits of all the others."""

import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers.cache_utils import Cache

from manners.models.shared_prefixes import Reading, model_inputs, plain_reading, read_once

CHUNK = 2**20  # logits that are worked on at once on a CPU: 4 MB in 32 bits stay in its cache
CHUNK_ON_GPU = 2**24


def logits_at(model: Any, reading: Reading, cache: Cache | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (N, V) at the N positions that ``reading`` asks for, and the hidden states (N, H) there.

    What is read stays in ``cache``, where there is one. The model's own forward pass computes the logits, so that
    whatever it does to them is done (Gemma 2 caps them, Granite and Cohere scale them). Its language-model head runs on
    those positions alone, which saves most of its time and memory for long prompts and large vocabularies.
    """
    inputs = model_inputs(model, reading, cache)
    selected: list[torch.Tensor] = []
    thread = threading.get_ident()

    def select(_head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if threading.get_ident() != thread:  # the same model is at work for somebody else, as in the web page
            return None
        selected.append(inputs[0].flatten(0, 1)[reading.positions])
        return (selected[0],)

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return logits, selected[0]


def token_nll(
    model: Any,
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    share_prefixes: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the NLL (N,) in nats of the N tokens in ``loss_mask`` (B, T-1), and whether each was the argmax (N,).

    ``loss_mask[:, t]`` selects token t + 1 of ``input_ids`` (B, T), which position t predicts. With ``share_prefixes``
    what rows begin with is read once, where the model allows it.
    """
    asked = F.pad(loss_mask, (0, 1))
    if position_ids is not None:  # of packed rows
        reading = Reading(input_ids, asked.flatten().nonzero()[:, 0], extra={"position_ids": position_ids})
    else:
        reading = read_once(model, input_ids, asked) if share_prefixes else plain_reading(input_ids, asked)
    logits = logits_at(model, reading)[0]
    targets = input_ids[:, 1:][loss_mask]
    return -TokenLogprobs.apply(logits, targets, 1.0, False)[0], logits.argmax(-1) == targets


class TokenLogprobs(torch.autograd.Function):
    """Logits (N, V) and the tokens (N,) to their log-probabilities (N,) and entropies (N,), in nats and 32 bits.

    Softmax over a vocabulary of 49 thousand is a matter of memory more than of arithmetic: some rows at a time, which
    stay in the cache, it is several times as fast, and no (N, V) tensor in 32 bits is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, temperature: float, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of softmax(logits / temperature); entropies are 0 unless they are asked for."""
        logprobs, entropies = torch.zeros(2, len(logits), device=logits.device)
        for rows in row_chunks(logits):
            log_p = torch.log_softmax(logits[rows].float() / temperature, -1)
            logprobs[rows] = log_p.gather(1, targets[rows, None])[:, 0]
            if with_entropy:
                entropies[rows] = -(log_p.exp() * log_p).sum(-1)
        ctx.save_for_backward(logits, targets, entropies)
        ctx.temperature = temperature
        if not with_entropy:
            ctx.mark_non_differentiable(entropies)
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Any, grad_entropies: Any) -> Any:  # type: ignore[override]
        """∂ log p(target) = onehot − p and ∂H = −p (log p + H) of each logit, divided by the temperature."""
        logits, targets, entropies = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in row_chunks(logits):
            log_p = torch.log_softmax(logits[rows].float() / ctx.temperature, -1)
            weights = torch.zeros(1, device=logits.device) if grad_logprobs is None else -grad_logprobs[rows, None]
            if grad_entropies is not None:
                weights = weights - grad_entropies[rows, None] * (log_p + entropies[rows, None])
            of_logits = log_p.exp_().mul_(weights)
            if grad_logprobs is not None:
                of_logits.scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            grad[rows] = of_logits.div_(ctx.temperature)
        return grad, None, None, None


def row_chunks(logits: torch.Tensor) -> Iterator[slice]:
    """The rows of ``logits`` (N, V), some at a time."""
    size = max(1, (CHUNK if logits.device.type == "cpu" else CHUNK_ON_GPU) // logits.shape[1])
    return (slice(start, start + size) for start in range(0, len(logits), size))
