"""Sampling with vLLM on the GPU that trains, through TRL's ``VLLMGeneration`` (1.16) in its colocate mode.

TRL builds the engine and copies the policy's weights into it, with a LoRA merged: the part that changes with vLLM's
versions. The sampling parameters are passed to vLLM directly, since TRL gives all rows one seed, and rows with the same
prompt and seed get the same reply: RLOO's several replies to a prompt would be identical.
"""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from manners.models.generation import Sampling, truncate_at_stop
from manners.models.kv_cache import TokenIds
from manners.models.lora import preserve_base_weights

GPU_MEMORY_UTILIZATION = 0.3  # for vLLM's weights and cache, as in TRL's trainers; training has the rest


class VLLMBackend:
    """A generation backend for the policy ``model``; ``max_length`` is in tokens, prompt and reply together.

    With several processes, all must create theirs at the same time, because vLLM initializes a process group. After
    that each generates for its own prompts, independently of the others.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int):
        from accelerate import Accelerator  # shares its state with the run's own, if there is one
        from trl.generation.vllm_generation import VLLMGeneration

        self.trl = VLLMGeneration(
            model,
            Accelerator(),
            tokenizer,
            mode="colocate",
            gpu_memory_utilization=GPU_MEMORY_UTILIZATION,
            max_model_length=max_length,
        )

    def __call__(self, model: Any, prompts: TokenIds, sampling: Sampling, uniforms: torch.Tensor | None) -> TokenIds:
        """Generate with the current weights. Each row of ``uniforms`` (B, max_new_tokens) seeds that row's sampling."""
        from vllm import SamplingParams

        assert model is self.trl.model, "VLLMBackend generates only for the model that it was created with"
        seeds = [None] * len(prompts)
        if uniforms is not None and sampling.temperature > 0:
            seeds = (uniforms[:, 0] * 2**24).long().tolist()
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=list(sampling.stop_token_ids),
                ignore_eos=True,  # our stop tokens only: vLLM would add those of the checkpoint's generation_config
                seed=seed,
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
            )
            for seed in seeds
        ]
        requests = [{"prompt_token_ids": ids} for ids in prompts]
        with torch.autocast(model.device.type, enabled=False):  # a LoRA is merged in 32 bits; vLLM casts by itself
            with preserve_base_weights(model):
                self.trl.sync_weights()
            outputs = self.trl.llm.generate(requests, params, use_tqdm=False)
        return [truncate_at_stop(list(output.outputs[0].token_ids), sampling.stop_token_ids) for output in outputs]
