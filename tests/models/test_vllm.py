"""method.generation_backend=vllm with TRL's own VLLMGeneration, and in it an engine that answers by our own decoding.

vLLM itself needs a GPU and is not here; all between us and it is real, so that a TRL that builds it, names its weights
or merges a LoRA in another way fails these tests.
"""

import copy
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import Qwen2ForCausalLM

from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.trainer import PPOTrainer, train_ppo
from manners.models.generation import Sampling, generate_ids
from manners.models.vllm import VLLMBackend
from manners.pipeline.stages.ppo import vllm_backend
from tests import commands
from tests.methods.ppo.cases import early_stops, liked, policy, ppo, prompts, share_of

ASKED = [[5, 6, 7], [8, 9], [5, 6, 7], [11, 12, 13, 14]]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Of vLLM 0.31's: those that could bend the distribution. None has a default here: each must be said."""

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


class Engine:
    """vLLM's LLM as TRL and we see it. It begins with no weights at all, and takes them by the checkpoint's names."""

    def __init__(self, model, **settings):
        self.settings, self.synced, self.asked = settings, 0, []
        self.network = Qwen2ForCausalLM.from_pretrained(model)
        for weight in self.network.parameters():
            weight.data.fill_(float("nan"))
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def load_weights(self, named):
        known = dict(self.network.named_parameters())
        for name, weight in named:
            known[name].data.copy_(weight)

    def reset_prefix_cache(self):
        self.synced += 1

    def generate(self, prompts, sampling_params, *, use_tqdm):
        assert not torch.is_autocast_enabled("cpu")
        self.asked = sampling_params
        return [self.answer(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    def answer(self, ids, asked):
        assert asked.ignore_eos
        draws = torch.rand(1, asked.max_tokens, generator=torch.Generator().manual_seed(asked.seed or 0))
        how = Sampling(asked.max_tokens, tuple(asked.stop_token_ids), 0, asked.temperature, "native")
        (reply,) = generate_ids(self.network, [ids], how, draws)
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(reply))])


@pytest.fixture
def vllm(monkeypatch):
    """As if it were installed, and this a process of a run: TRL tells vLLM so by the environment."""
    from accelerate.state import AcceleratorState
    from trl.generation import vllm_generation

    stand_in = ModuleType("vllm")
    stand_in.SamplingParams = SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", Engine, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def saved(small_qwen2, tmp_path):
    """A small policy that has preferences, from a folder as vLLM needs it."""
    small_qwen2.get_input_embeddings().weight.data.mul_(6)
    small_qwen2.save_pretrained(tmp_path / "base")
    return Qwen2ForCausalLM.from_pretrained(tmp_path / "base")


def moved(actor):
    """As by an update."""
    with torch.no_grad():
        for p in actor.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return actor


def game(actor, tokenizer, engine=None, **changes):
    settings = ppo(generation_backend="vllm" if engine else "native", **changes)
    parts = share_of(liked(actor.model))
    return PPOTrainer(actor, tokenizer, early_stops(tokenizer), parts, settings, 3, ProcessGroup(), engine)


@pytest.mark.parametrize("kind, critic", [("lora", "head"), ("lora", "adapter"), ("none", "head")])
def test_greedy_rollouts_are_those_of_our_own_decoding_by_the_weights_of_the_moment(
    vllm, saved, tokenizer, kind, critic
):
    actor = policy(saved, kind, critic)
    engine = VLLMBackend(actor.model, tokenizer, 72)
    before, lengths = [], set()
    for _ in range(3):
        moved(actor)
        weights = copy.deepcopy(actor.state_dict())
        flags = {name: p.requires_grad for name, p in actor.named_parameters()}
        one, other = (game(actor, tokenizer, e).roll(prompts(6), None) for e in (engine, None))
        assert one.reply_ids == other.reply_ids != before
        assert torch.equal(one.logprobs, other.logprobs) and torch.equal(one.ended, other.ended)
        assert all(torch.equal(weights[name], weight) for name, weight in actor.state_dict().items())  # bit by bit
        assert flags == {name: p.requires_grad for name, p in actor.named_parameters()}
        before = one.reply_ids
        lengths |= set(map(len, before))
    assert engine.trl.llm.synced == 3
    assert len(lengths) > 1  # some came to a stop


def test_a_sampled_reply_depends_on_its_own_draws_alone(vllm, saved, tokenizer):
    model = moved(policy(saved)).model
    sampling = Sampling(8, tuple(early_stops(tokenizer)), 0, 0.8, VLLMBackend(model, tokenizer, 72))
    draws = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    together = generate_ids(model, ASKED, sampling, draws)
    assert together == generate_ids(model, ASKED, sampling, draws)
    assert together == [generate_ids(model, [p], sampling, draws[i : i + 1])[0] for i, p in enumerate(ASKED)]
    assert together[0] != together[2]  # siblings: one prompt, two replies
    assert generate_ids(model, ASKED, sampling, draws.flip(0)) != together


def test_vllm_is_told_every_knob_and_leaves_the_training_its_memory(vllm, saved, tokenizer):
    model = policy(saved).model
    saved.generation_config.update(repetition_penalty=1.3, top_k=5, eos_token_id=[1, 2])
    engine = VLLMBackend(model, tokenizer, 72)
    generate_ids(model, ASKED[:1], Sampling(8, (3, 4), 0, 0.8, engine), torch.tensor([[0.5] * 8]))
    (asked,) = engine.trl.llm.asked
    assert asked == SamplingParams(
        temperature=0.8, max_tokens=8, stop_token_ids=[3, 4], ignore_eos=True, seed=2**23, top_p=1.0, top_k=0,
        min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0,
    )  # fmt: skip
    generate_ids(model, ASKED[:1], Sampling(8, (3, 4), 0, 0.0, engine))
    assert [(s.temperature, s.seed) for s in engine.trl.llm.asked] == [(0.0, None)]
    settings = engine.trl.llm.settings
    assert settings["max_model_len"] == 72 and settings["gpu_memory_utilization"] == 0.3
    assert settings["trust_remote_code"] is False and settings["quantization"] is None


def test_a_run_samples_by_it_and_trains_by_our_own_log_probabilities(vllm, saved, tokenizer, tmp_path):
    actor, logged = policy(saved), {}
    settings = ppo(total_episodes=16, eval_steps=1, generation_backend="vllm", num_ppo_epochs=1, num_mini_batches=1)
    engine = vllm_backend(settings, actor.model, tokenizer)
    ours = game(actor, tokenizer, engine, total_episodes=16, eval_steps=1, num_ppo_epochs=1, num_mini_batches=1)
    train_ppo(ours, prompts(10), prompts(4), tmp_path, lambda m, step: logged.update(m), lambda *_: None, print)
    assert engine.trl.llm.synced == 2 + 3  # rollouts and evaluations
    assert logged["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-9)  # one update a rollout: its ratio is 1


def test_it_answers_for_no_other_model(vllm, saved, tokenizer):
    engine = VLLMBackend(policy(saved).model, tokenizer, 72)
    with pytest.raises(AssertionError, match="made with"):
        generate_ids(policy(saved).model, ASKED, Sampling(4, (), 0, 0.0, engine))


def test_plain_runs_touch_neither_vllm_nor_trls_part_for_it(saved, tokenizer, tmp_path):
    assert vllm_backend(ppo(), saved, tokenizer) is None
    script = tmp_path / "told.py"
    script.write_text(
        "import sys, manners.pipeline.run; print({'trl.generation.vllm_generation', 'vllm'} & {*sys.modules})"
    )
    assert commands.train(script=script) == "set()\n"
