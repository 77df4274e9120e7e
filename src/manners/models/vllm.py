"""Sampling by vLLM on the GPU that trains, through TRL's ``VLLMGeneration`` (1.16) in its colocate mode.

TRL builds the engine and hands it the policy's weights, a LoRA merged into them: the part that changes with vLLM's
versions. What to draw is asked of vLLM itself, for TRL hands all rows one seed, and rows of one prompt and one seed get
one reply: RLOO's siblings would be alike.
"""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from manners.models.generation import Sampling, truncate_at_stop
from manners.models.kv_cache import TokenIds
from manners.models.lora import preserve_base_weights

MEMORY = 0.3  # share of the GPU for vLLM's weights and cache, as in TRL's trainers; training has the rest


class VLLMBackend:
    """A backend of ``generate`` for the policy ``model``; ``longest`` is in tokens, prompt and reply together.

    Several processes must make theirs at the same time, for vLLM makes them greet one another. Afterwards each answers
    its own prompts, and may do so alone.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, longest: int):
        from accelerate import Accelerator  # the run's own, where it has one: they share their state
        from trl.generation.vllm_generation import VLLMGeneration

        self.trl = VLLMGeneration(
            model, Accelerator(), tokenizer, mode="colocate", gpu_memory_utilization=MEMORY, max_model_length=longest
        )

    def __call__(self, model: Any, prompts: TokenIds, sampling: Sampling, draws: torch.Tensor | None) -> TokenIds:
        """Replies by the weights of this moment. A row's seed comes from its own draws."""
        from vllm import SamplingParams

        assert model is self.trl.model, "vLLM speaks for the model that it was made with"
        seeds = [None] * len(prompts)
        if draws is not None and sampling.temperature > 0:
            seeds = (draws[:, 0] * 2**24).long().tolist()
        how = [
            SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=list(sampling.stops),
                ignore_eos=True,  # our stops alone: vLLM would add those of the checkpoint's generation_config
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
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        with torch.autocast(model.device.type, enabled=False):  # a LoRA is merged in 32 bits; vLLM casts as it sees fit
            with preserve_base_weights(model):
                self.trl.sync_weights()
            answers = self.trl.llm.generate(asked, how, use_tqdm=False)
        return [truncate_at_stop(list(answer.outputs[0].token_ids), sampling.stops) for answer in answers]
