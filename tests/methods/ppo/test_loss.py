"""The losses by hand, and what an update does to a policy, whatever its microbatches and processes."""

import copy
import math
import random
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.loss import microbatch_loss, policy_loss, update_policy, value_loss
from manners.methods.ppo.rollout import MicroBatch, Rollout, microbatches, scatter_tokens
from manners.methods.ppo.trainer import make_optimizer
from manners.models.lora import trainable_parameters
from manners.models.policy import PolicyOutput
from tests.methods.ppo.cases import make_policy, ppo_config, rloo_config, sample_rollout
from tests.methods.ppo.threads import run_in_threads

# --- The losses ---


@pytest.mark.parametrize(
    "ratio, advantage, expected, slope",
    [
        (1.1, 2.0, -2.2, -2.2),  # within the clip range
        (1.1, -2.0, 2.2, 2.2),
        (1.5, 2.0, -2.4, 0.0),  # a good token has become likely enough
        (1.5, -2.0, 3.0, 3.0),  # a bad token has become likelier: its gradient is never clipped
        (0.5, 2.0, -1.0, -1.0),  # a good token has become less likely: its gradient is never clipped
        (0.5, -2.0, 1.6, 0.0),  # a bad token has become unlikely enough
    ],
)
def test_policy_loss_by_hand(ratio, advantage, expected, slope):
    old = torch.tensor([-1.3])
    new = (old + math.log(ratio)).requires_grad_()
    loss = policy_loss(new, old, torch.tensor([advantage]), 0.2)
    loss.backward()
    assert loss.tolist() == pytest.approx([expected], abs=1e-5)
    assert new.grad.tolist() == pytest.approx([slope], abs=1e-5)  # dρ/d log π = ρ


@pytest.mark.parametrize(
    "new, target, expected, slope",
    [
        (1.1, 2.0, 0.405, -0.9),  # within the clip range: ½ · 0.9²
        (1.5, 2.0, 0.32, 0.0),  # towards the return, further than 0.2: ½ · 0.8², and no gradient
        (1.5, 0.5, 0.5, 1.0),  # away from the return: its own error, ½ · 1²
        (0.5, 1.0, 0.125, -0.5),
    ],
)
def test_value_loss_by_hand(new, target, expected, slope):
    old, value = torch.tensor([1.0]), torch.tensor([new], requires_grad=True)
    loss = value_loss(value, old, torch.tensor([target]), 0.2)
    loss.backward()
    assert loss.tolist() == pytest.approx([expected])
    assert value.grad.tolist() == pytest.approx([slope], abs=1e-6)


def test_clip_fractions_count_tokens_with_the_clipped_loss():
    """As in TRL: a bad token that has become likelier is far from the old policy, and not clipped."""
    ratios, advantages = torch.tensor([[1.1, 1.5, 1.5, 0.5, 0.5]]), torch.tensor([[2.0, 2.0, -2.0, 2.0, -2.0]])
    values, returns = torch.tensor([[1.1, 1.5, 1.5, 0.5, 1.0]]), torch.tensor([[2.0, 2.0, 0.5, 1.0, 1.0]])
    old = torch.full((1, 5), -1.0)
    batch = SimpleNamespace(mask=torch.ones(1, 5, dtype=torch.bool), logprobs=old, values=torch.ones(1, 5))
    output = PolicyOutput((old + ratios.log())[0], torch.zeros(5), values[0])
    policy = Mock(return_value=output, model=SimpleNamespace(device="cpu"))
    part = MicroBatch([0], torch.zeros(1, 6), torch.ones(1, 5, dtype=torch.bool))
    _, stats = microbatch_loss(policy, batch, part, advantages, returns, ppo_config())
    assert (stats.policy_clip_fraction, stats.value_clip_fraction) == (2, 1)  # sums: ρ = 1.5 and 0.5; value 1.5 of 2.0


# --- The update ---


def make_case(model, tokenizer, adapter="lora", critic="head"):
    """A policy that has moved from its start, its rollout, and random advantages and returns."""
    policy = make_policy(model, adapter, critic)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in trainable_parameters(policy).values():
            p.add_(0.05 * torch.randn_like(p))
    batch = sample_rollout(policy, tokenizer)
    advantages, returns = (torch.randn(batch.mask.shape) * batch.mask for _ in range(2))
    return policy, batch, advantages, returns


def update(case, config, process_group=None, rows=slice(None)):
    """Update a copy of the case's policy: the policy and the statistics."""
    policy, batch, advantages, returns = copy.deepcopy(case)
    batch = Rollout(*(getattr(batch, name)[rows] for name in vars(batch)))
    optimizer = make_optimizer(policy, config)
    processes = process_group or ProcessGroup()
    stats = update_policy(
        policy, optimizer, batch, advantages[rows], returns[rows], config, random.Random(0), 0, processes
    )
    return policy, stats


def relative_difference(a, b):
    """The largest difference between the weights of two policies, over the largest weight."""
    weights, others = trainable_parameters(a), trainable_parameters(b)
    largest = max(float(p.detach().abs().max()) for p in weights.values())
    return max(float((weights[n] - others[n]).detach().abs().max()) for n in weights) / largest


def one_step(**changes):
    """One unclipped gradient step: Adam divides by the size of the gradient, so gradients are compared instead."""
    return ppo_config(**({"num_ppo_epochs": 1, "num_mini_batches": 1, "max_grad_norm": 0.0} | changes))


def gradient_of_update(case, config):
    """The gradient of the last minibatch, as one vector."""
    policy, _ = update(case, config)
    return torch.cat([p.grad.flatten() for p in trainable_parameters(policy).values() if p.grad is not None])


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_gradient_does_not_depend_on_microbatch_tokens(small_qwen2, tokenizer, critic):
    case = make_case(small_qwen2, tokenizer, critic=critic)
    single_rows, some_rows, all_rows = (gradient_of_update(case, one_step(microbatch_tokens=n)) for n in (1, 64, 10**6))
    assert all_rows.norm() > 1e-3
    assert (single_rows - all_rows).norm() < 1e-5 * all_rows.norm()
    assert (some_rows - all_rows).norm() < 1e-5 * all_rows.norm()


def test_weights_after_epochs_do_not_depend_on_microbatch_tokens(small_qwen2, tokenizer):
    case = make_case(small_qwen2, tokenizer)
    (one, stats), (other, other_stats) = (update(case, ppo_config(microbatch_tokens=n)) for n in (10**6, 64))
    assert relative_difference(case[0], one) > 1e-3
    assert relative_difference(one, other) < 1e-4
    assert stats.optimizer_steps == other_stats.optimizer_steps == 4 * 2
    assert stats.metrics == pytest.approx(other_stats.metrics, rel=1e-3, abs=1e-4)


def test_gradient_checkpointing_recomputes_and_keeps_gradients(small_qwen2, tokenizer):
    """Also after an evaluation has set the model to eval mode."""
    case = make_case(small_qwen2, tokenizer, critic="adapter")
    checkpointed = copy.deepcopy(case)
    checkpointed[0].model.enable_input_require_grads()
    checkpointed[0].model.gradient_checkpointing_enable({"use_reentrant": False})

    def gradient_and_calls(case):
        calls = []
        case[0].eval()
        for layer in case[0].model.get_decoder().layers:
            layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        return gradient_of_update(case, one_step(microbatch_tokens=10**6)), len(calls)

    gradient, calls = gradient_and_calls(case)
    recomputed, more_calls = gradient_and_calls(checkpointed)
    # Two layers each for policy and critic, whose are not recomputed; without checkpoints both read a prefix, too.
    assert (calls, more_calls) == (2 * (2 + 2), 2 * 2 + 2)
    assert (gradient - recomputed).norm() < 1e-5 * gradient.norm()


def test_gradient_is_that_of_the_mean_over_all_tokens(small_qwen2, tokenizer):
    """Computed from the plain model's logits, reply by reply. At a ratio of 1 the surrogate's is −A ∇ log π."""
    policy, batch, advantages, returns = case = make_case(small_qwen2, tokenizer)
    gradient = gradient_of_update(case, one_step(vf_coef=0.3, cliprange_value=1e6, temperature=0.8))
    loss = 0.0
    for row, (prompt, reply) in enumerate(zip(batch.prompt_ids, batch.reply_ids, strict=True)):
        positions, n = slice(len(prompt) - 1, len(prompt) + len(reply) - 1), len(reply)
        output = policy.model(torch.tensor([prompt + reply]), output_hidden_states=True)
        logprobs = torch.log_softmax(output.logits[0, positions] / 0.8, -1)[range(n), reply]
        values = policy.value_head(output.hidden_states[-1][0, positions])[:, 0]
        loss = loss - (advantages[row, :n] * logprobs).sum() + 0.3 * 0.5 * ((values - returns[row, :n]) ** 2).sum()
    (loss / sum(map(len, batch.reply_ids))).backward()
    expected = torch.cat([p.grad.flatten() for p in trainable_parameters(policy).values()])
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_first_ratio_of_an_update_is_one(small_qwen2, tokenizer, adapter):
    small_qwen2.generation_config.update(repetition_penalty=1.3, top_k=5, temperature=3.0)
    case = make_case(small_qwen2, tokenizer, adapter)
    _, stats = update(case, ppo_config(num_mini_batches=4, num_ppo_epochs=1, learning_rate=0.1, temperature=0.8))
    assert abs(stats.metrics["val/ratio_first"] - 1) < 1e-5
    assert abs(stats.metrics["val/ratio"] - 1) > 1e-3  # the policy has moved by then
    _, wrong = update(case, ppo_config(num_mini_batches=4, num_ppo_epochs=1, temperature=1.0))
    assert abs(wrong.metrics["val/ratio_first"] - 1) > 1e-3  # so a forgotten temperature would show


def test_gradients_are_clipped_to_max_grad_norm(small_qwen2, tokenizer):
    case = make_case(small_qwen2, tokenizer)
    gradient, clipped = gradient_of_update(case, one_step()), gradient_of_update(case, one_step(max_grad_norm=0.01))
    assert gradient.norm() > 0.02
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(clipped / clipped.norm(), gradient / gradient.norm(), atol=1e-5)
    _, stats = update(case, one_step(max_grad_norm=0.01))
    assert stats.metrics["policy/grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_target_kl_stops_the_update_early(small_qwen2, tokenizer):
    case = make_case(small_qwen2, tokenizer)
    large_steps = {"learning_rate": 3e-2, "num_mini_batches": 4, "num_ppo_epochs": 3}
    _, full = update(case, ppo_config(**large_steps))
    assert (full.optimizer_steps, full.stopped_early) == (12, False)
    stopped, stats = update(case, ppo_config(**large_steps, target_kl=0.02))
    assert stats.stopped_early and 1 <= stats.optimizer_steps < 12
    assert stats.metrics["policy/approxkl_avg"] <= 0.02
    unstopped, stats = update(case, ppo_config(**large_steps, target_kl=1e9))
    assert not stats.stopped_early and relative_difference(unstopped, stopped) > 1e-3


def recompute(policy, batch):
    """The rollout with the log-probabilities and entropies that another policy gives its replies."""
    batch = copy.deepcopy(batch)
    policy.eval()
    with torch.no_grad():
        for part in microbatches(batch, list(range(len(batch.texts))), 10**6, 0):
            output = policy(part.ids, part.response_mask, 0.8)
            scatter_tokens(batch.entropy, output.entropy, part.rows, batch.mask)
            scatter_tokens(batch.logprobs, output.logprobs, part.rows, batch.mask)
    return batch


def test_entropy_coef_raises_the_entropy(small_qwen2, tokenizer):
    policy, batch, *_ = make_case(small_qwen2, tokenizer)
    zeros = torch.zeros(batch.mask.shape)

    def entropy_after(entropy_coef):
        config = ppo_config(learning_rate=1e-3, entropy_coef=entropy_coef, vf_coef=0.0)
        trained, _ = update((policy, batch, zeros, zeros), config)
        return float(recompute(trained, batch).entropy[batch.mask].mean())

    without, with_bonus = entropy_after(0.0), entropy_after(1.0)
    assert without == pytest.approx(float(batch.entropy[batch.mask].mean()), abs=1e-5)
    assert with_bonus > without + 1e-3


def test_update_follows_the_sign_of_the_advantage(small_qwen2, tokenizer):
    policy, batch, *_ = make_case(small_qwen2, tokenizer)
    advantages = torch.zeros(batch.mask.shape)
    advantages[:4], advantages[4:] = 1.0, -1.0
    zeros, config = torch.zeros_like(advantages), ppo_config(learning_rate=3e-3, vf_coef=0.0)
    trained, _ = update((policy, batch, advantages * batch.mask, zeros), config)
    change = (recompute(trained, batch).logprobs - batch.logprobs)[batch.mask]
    assert change[advantages[batch.mask] > 0].mean() > 0 > change[advantages[batch.mask] < 0].mean()


@pytest.mark.parametrize("broken", ["advantages", "weights"])
def test_nonfinite_loss_raises_before_weights_change(small_qwen2, tokenizer, broken):
    policy, batch, advantages, returns = make_case(small_qwen2, tokenizer)
    if broken == "advantages":
        advantages[0, 0] = math.nan
    else:
        policy.value_head.weight.data[0, 0] = math.inf
    optimizer = make_optimizer(policy, ppo_config())
    before = {n: p.detach().clone() for n, p in trainable_parameters(policy).items()}
    with pytest.raises(FloatingPointError, match="is not finite"):
        update_policy(policy, optimizer, batch, advantages, returns, one_step(), random.Random(0), 0, ProcessGroup())
    assert all(torch.equal(p, before[n]) for n, p in trainable_parameters(policy).items())


def test_make_optimizer_has_a_learning_rate_for_the_critic(small_qwen2):
    for critic in ("head", "adapter"):
        policy = make_policy(small_qwen2, critic=critic)
        optimizer = make_optimizer(policy, ppo_config(learning_rate=1e-4, value_learning_rate=1e-2))
        names = {id(p): n for n, p in policy.named_parameters()}
        policy_names, critic_names = ([names[id(p)] for p in g["params"]] for g in optimizer.param_groups)
        assert [g["lr"] for g in optimizer.param_groups] == [1e-4, 1e-2]
        assert all(".default." in n for n in policy_names) and len(policy_names) == 28
        assert len(critic_names) == (2 if critic == "head" else 30)


def test_make_optimizer_has_no_critic_group_for_rloo(small_qwen2):
    [group] = make_optimizer(make_policy(small_qwen2, critic="none"), rloo_config()).param_groups
    assert len(group["params"]) == 28


# --- Two processes ---


@pytest.mark.parametrize("num_mini_batches", [1, 3])
def test_update_in_two_processes_equals_one(small_qwen2, tokenizer, num_mini_batches):
    """Two threads, each with its own policy and half of the rollout."""
    case = make_case(small_qwen2, tokenizer)
    config = ppo_config(num_mini_batches=num_mini_batches, microbatch_tokens=64)
    expected, expected_stats = update(case, config)

    def work(rank, reduce):
        accelerator = SimpleNamespace(device="cpu", reduce=lambda tensor, _how: reduce(tensor.clone()))
        return update(case, config, ProcessGroup(rank, 2, accelerator), slice(4 * rank, 4 * rank + 4))

    (first, stats), (second, other_stats) = run_in_threads(work)
    assert relative_difference(case[0], expected) > 1e-3
    assert all(torch.equal(p, trainable_parameters(second)[n]) for n, p in trainable_parameters(first).items())
    assert relative_difference(expected, first) < 1e-4
    assert stats.metrics == other_stats.metrics == pytest.approx(expected_stats.metrics, rel=1e-3, abs=1e-4)
    assert stats.optimizer_steps == expected_stats.optimizer_steps


def test_process_group_shards_rows_and_indices():
    processes = [ProcessGroup(rank, 2) for rank in (0, 1)]
    assert [p.shard(list("abcdef")) for p in processes] == [["a", "b", "c"], ["d", "e", "f"]]
    assert [p.local_indices([5, 0, 3, 2], 3) for p in processes] == [[0, 2], [2, 0]]
