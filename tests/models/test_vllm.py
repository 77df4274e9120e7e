"""method.generation_backend=vllm with TRL's real VLLMGeneration around a fake engine that uses the native backend.

vLLM needs a GPU and is not installed here. Everything between us and the engine is real: these tests fail with a TRL
that creates the engine, names its weights or merges a LoRA in another way.
"""

import copy
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import Qwen2ForCausalLM

from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.rollout import encode_prompts, run_networks, sample_replies
from manners.methods.ppo.trainer import PPOTrainer, train_ppo
from manners.models.generation import Sampling, generate_ids
from manners.models.vllm import VLLMBackend
from manners.pipeline.stages.ppo import vllm_backend
from tests import commands
from tests.methods.ppo.cases import (
    frequent_stop_ids,
    make_policy,
    make_prompts,
    ppo_config,
    rewarded_tokens,
    token_share_reward,
)

PROMPT_IDS = [[5, 6, 7], [8, 9], [5, 6, 7], [11, 12, 13, 14]]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The fields of vLLM 0.31's class that could change the distribution, without defaults: each must be given."""

    temperature: float
    max_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    seed: int | None
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float


class FakeLLM:
    """The part of vLLM's LLM that TRL and we use; its weights are NaN until loaded by the checkpoint's names."""

    def __init__(self, model, **kwargs):
        self.kwargs, self.num_syncs, self.sampling_params = kwargs, 0, []
        self.model = Qwen2ForCausalLM.from_pretrained(model)
        for weight in self.model.parameters():
            weight.data.fill_(float("nan"))
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def load_weights(self, named_weights):
        parameters = dict(self.model.named_parameters())
        for name, weight in named_weights:
            parameters[name].data.copy_(weight)

    def reset_prefix_cache(self):
        self.num_syncs += 1

    def generate(self, make_prompts, sampling_params, *, use_tqdm):
        assert not torch.is_autocast_enabled("cpu")
        self.sampling_params = sampling_params
        return [self.generate_one(p["prompt_token_ids"], s) for p, s in zip(make_prompts, sampling_params, strict=True)]

    def generate_one(self, ids, params):
        assert params.ignore_eos
        uniforms = torch.rand(1, params.max_tokens, generator=torch.Generator().manual_seed(params.seed or 0))
        sampling = Sampling(params.max_tokens, tuple(params.stop_token_ids), 0, params.temperature, "native")
        (reply,) = generate_ids(self.model, [ids], sampling, uniforms)
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(reply))])


@pytest.fixture
def vllm(monkeypatch):
    """A fake vllm module, and environment variables that TRL sets for it restored after the test."""
    from accelerate.state import AcceleratorState
    from trl.generation import vllm_generation

    module = ModuleType("vllm")
    module.SamplingParams = SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", FakeLLM, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def saved_qwen2(small_qwen2, tmp_path):
    """A small model with distinct token probabilities, loaded from a folder, as vLLM needs it."""
    small_qwen2.get_input_embeddings().weight.data.mul_(6)
    small_qwen2.save_pretrained(tmp_path / "base")
    return Qwen2ForCausalLM.from_pretrained(tmp_path / "base")


def perturbed(policy):
    """Change the trainable weights, as an update would."""
    with torch.no_grad():
        for p in policy.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return policy


def make_trainer(policy, tokenizer, vllm=None, **changes):
    config = ppo_config(generation_backend="vllm" if vllm else "native", **changes)
    rewards = token_share_reward(rewarded_tokens(policy.model))
    return PPOTrainer(policy, tokenizer, frequent_stop_ids(tokenizer), rewards, config, 3, ProcessGroup(), vllm)


def greedy_rollout(policy, tokenizer, backend):
    prompts, sampling = make_prompts(6), Sampling(8, tuple(frequent_stop_ids(tokenizer)), 0, 0.0, backend)
    batch = sample_replies(policy, tokenizer, prompts, encode_prompts(prompts, tokenizer, 64), sampling, None)
    run_networks(policy, batch, 1.0, 256, tokenizer.pad_token_id)
    return batch


@pytest.mark.parametrize("kind, critic", [("lora", "head"), ("lora", "adapter"), ("none", "head")])
def test_vllm_greedy_rollouts_match_native_after_each_update(vllm, saved_qwen2, tokenizer, kind, critic):
    policy = make_policy(saved_qwen2, kind, critic)
    backend = VLLMBackend(policy.model, tokenizer, 72)
    previous, lengths = [], set()
    for _ in range(3):
        perturbed(policy)
        weights = copy.deepcopy(policy.state_dict())
        requires_grad = {name: p.requires_grad for name, p in policy.named_parameters()}
        by_vllm, native = (greedy_rollout(policy, tokenizer, used) for used in (backend, "native"))
        assert by_vllm.reply_ids == native.reply_ids != previous
        assert torch.equal(by_vllm.logprobs, native.logprobs) and torch.equal(by_vllm.has_eos, native.has_eos)
        assert all(torch.equal(weights[name], weight) for name, weight in policy.state_dict().items())  # bit by bit
        assert requires_grad == {name: p.requires_grad for name, p in policy.named_parameters()}
        previous = by_vllm.reply_ids
        lengths |= set(map(len, previous))
    assert backend.trl.llm.num_syncs == 3
    assert len(lengths) > 1  # some replies ended with a stop token


def test_vllm_reply_depends_on_its_own_uniforms_alone(vllm, saved_qwen2, tokenizer):
    model = perturbed(make_policy(saved_qwen2)).model
    sampling = Sampling(8, tuple(frequent_stop_ids(tokenizer)), 0, 0.8, VLLMBackend(model, tokenizer, 72))
    uniforms = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    batched = generate_ids(model, PROMPT_IDS, sampling, uniforms)
    assert batched == generate_ids(model, PROMPT_IDS, sampling, uniforms)
    assert batched == [generate_ids(model, [p], sampling, uniforms[i : i + 1])[0] for i, p in enumerate(PROMPT_IDS)]
    assert batched[0] != batched[2]  # the same prompt, two replies
    assert generate_ids(model, PROMPT_IDS, sampling, uniforms.flip(0)) != batched


def test_vllm_gets_every_sampling_parameter_and_its_memory_share(vllm, saved_qwen2, tokenizer):
    model = make_policy(saved_qwen2).model
    saved_qwen2.generation_config.update(repetition_penalty=1.3, top_k=5, eos_token_id=[1, 2])
    backend = VLLMBackend(model, tokenizer, 72)
    generate_ids(model, PROMPT_IDS[:1], Sampling(8, (3, 4), 0, 0.8, backend), torch.tensor([[0.5] * 8]))
    (params,) = backend.trl.llm.sampling_params
    assert params == SamplingParams(
        temperature=0.8, max_tokens=8, stop_token_ids=[3, 4], ignore_eos=True, seed=2**23, top_p=1.0, top_k=0,
        min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0,
    )  # fmt: skip
    generate_ids(model, PROMPT_IDS[:1], Sampling(8, (3, 4), 0, 0.0, backend))
    assert [(p.temperature, p.seed) for p in backend.trl.llm.sampling_params] == [(0.0, None)]
    kwargs = backend.trl.llm.kwargs
    assert kwargs["max_model_len"] == 72 and kwargs["gpu_memory_utilization"] == 0.3
    assert kwargs["trust_remote_code"] is False and kwargs["quantization"] is None


def test_ppo_run_samples_with_vllm_and_recomputes_logprobs(vllm, saved_qwen2, tokenizer, tmp_path):
    policy, metrics = make_policy(saved_qwen2), {}
    changes = {"total_episodes": 16, "eval_steps": 1, "num_ppo_epochs": 1, "num_mini_batches": 1}
    backend = vllm_backend(ppo_config(generation_backend="vllm", **changes), policy.model, tokenizer)
    trainer = make_trainer(policy, tokenizer, backend, **changes)
    train_ppo(
        trainer, make_prompts(10), make_prompts(4), tmp_path, lambda m, step: metrics.update(m), lambda *_: None, print
    )
    assert backend.trl.llm.num_syncs == 2 + 3  # rollouts and evaluations
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-9)  # one update per rollout: its ratio is 1


def test_vllm_backend_refuses_another_model(vllm, saved_qwen2, tokenizer):
    backend = VLLMBackend(make_policy(saved_qwen2).model, tokenizer, 72)
    with pytest.raises(AssertionError, match="created with"):
        generate_ids(make_policy(saved_qwen2).model, PROMPT_IDS, Sampling(4, (), 0, 0.0, backend))


def test_other_backends_do_not_import_vllm(saved_qwen2, tokenizer, tmp_path):
    assert vllm_backend(ppo_config(), saved_qwen2, tokenizer) is None
    script = tmp_path / "imports.py"
    script.write_text(
        "import sys, manners.pipeline.run; print({'trl.generation.vllm_generation', 'vllm'} & {*sys.modules})"
    )
    assert commands.train(script=script) == "set()\n"
