"""The losses by hand, and what an update does to a policy, whatever its batches and processes."""

import copy
import math
import random
import threading
from types import SimpleNamespace

import pytest
import torch

from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.loss import policy_loss, update_policy, value_loss
from manners.methods.ppo.rollout import Rollout
from manners.methods.ppo.trainer import make_optimizer
from manners.models.lora import trainable_parameters
from tests.methods.ppo.cases import early_stops, policy, ppo, rloo, sample_rollout
from tests.methods.ppo.test_advantages import Meeting

# --- The losses ---


@pytest.mark.parametrize(
    "ratio, advantage, wanted, slope",
    [
        (1.1, 2.0, -2.2, -2.2),  # inside the clip
        (1.1, -2.0, 2.2, 2.2),
        (1.5, 2.0, -2.4, 0.0),  # gone far enough towards a good token
        (1.5, -2.0, 3.0, 3.0),  # a bad token grew likelier: pulled back from anywhere
        (0.5, 2.0, -1.0, -1.0),  # a good token grew rarer: pulled back from anywhere
        (0.5, -2.0, 1.6, 0.0),  # gone far enough away from a bad token
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, wanted, slope):
    old = torch.tensor([-1.3])
    new = (old + math.log(ratio)).requires_grad_()
    loss = policy_loss(new, old, torch.tensor([advantage]), 0.2)
    loss.backward()
    assert loss.tolist() == pytest.approx([wanted], abs=1e-5)
    assert new.grad.tolist() == pytest.approx([slope], abs=1e-5)  # dρ/d log π = ρ


@pytest.mark.parametrize(
    "new, target, wanted, slope",
    [
        (1.1, 2.0, 0.405, -0.9),  # inside the clip: ½ · 0.9²
        (1.5, 2.0, 0.32, 0.0),  # towards the return, further than 0.2: ½ · 0.8², nothing more to learn
        (1.5, 0.5, 0.5, 1.0),  # away from the return: its own error, ½ · 1²
        (0.5, 1.0, 0.125, -0.5),
    ],
)
def test_clipped_value_loss_by_hand(new, target, wanted, slope):
    old, value = torch.tensor([1.0]), torch.tensor([new], requires_grad=True)
    loss = value_loss(value, old, torch.tensor([target]), 0.2)
    loss.backward()
    assert loss.tolist() == pytest.approx([wanted])
    assert value.grad.tolist() == pytest.approx([slope], abs=1e-6)


# --- The update ---


def case(model, tokenizer, kind="lora", critic="head"):
    """A policy that has learned a little already, its rollout, and advantages of either sign."""
    trained = policy(model, kind, critic)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in trainable_parameters(trained).values():
            p.add_(0.05 * torch.randn_like(p))
    batch = sample_rollout(trained, tokenizer, early_stops(tokenizer))
    advantages, returns = (torch.randn(batch.mask.shape) * batch.mask for _ in range(2))
    return trained, batch, advantages, returns


def run(case, settings, process_group=None, rows=slice(None)):
    """Update a copy of the case's trained."""
    trained, batch, advantages, returns = copy.deepcopy(case)
    part = Rollout(*(getattr(batch, name)[rows] for name in vars(batch)))
    optimizer = make_optimizer(trained, settings)
    done = update_policy(
        trained,
        optimizer,
        part,
        advantages[rows],
        returns[rows],
        settings,
        random.Random(0),
        0,
        process_group or ProcessGroup(),
    )
    return trained, done


def changes(before, after):
    old = trainable_parameters(before)
    return {n: (p - old[n]).detach() for n, p in trainable_parameters(after).items()}


def apart(a, b):
    """The largest difference of two sets of weights, as a share of the largest weight."""
    own, other = trainable_parameters(a), trainable_parameters(b)
    largest = max(float(p.detach().abs().max()) for p in own.values())
    return max(float((own[n] - other[n]).detach().abs().max()) for n in own) / largest


def once(**changes):
    """One plain step down the gradient: what an optimizer that divides by its size would hide, this shows."""
    return ppo(**({"num_ppo_epochs": 1, "num_mini_batches": 1, "max_grad_norm": 0.0} | changes))


def gradient(case, settings, process_group=None, rows=slice(None)):
    """What the last minibatch left in the weights' gradients."""
    trained, _ = run(case, settings, process_group, rows)
    return torch.cat([p.grad.flatten() for p in trainable_parameters(trained).values() if p.grad is not None])


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_the_gradient_does_not_depend_on_the_micro_batches(small_qwen2, tokenizer, critic):
    start = case(small_qwen2, tokenizer, critic=critic)
    one_by_one, some, whole = (gradient(start, once(microbatch_tokens=n)) for n in (1, 64, 10**6))
    assert whole.norm() > 1e-3
    assert (one_by_one - whole).norm() < 1e-5 * whole.norm()
    assert (some - whole).norm() < 1e-5 * whole.norm()


def test_nor_do_the_weights_after_several_epochs_of_minibatches(small_qwen2, tokenizer):
    start = case(small_qwen2, tokenizer)
    (few, a), (many, b) = (run(start, ppo(microbatch_tokens=n)) for n in (10**6, 64))
    assert apart(start[0], few) > 1e-3
    assert apart(few, many) < 1e-4
    assert a.optimizer_steps == b.optimizer_steps == 4 * 2
    assert a.metrics == pytest.approx(b.metrics, rel=1e-3, abs=1e-4)


def test_gradient_checkpointing_spares_memory_and_changes_nothing(small_qwen2, tokenizer):
    """Also after an evaluation has put the model into its evaluation mode."""
    plain = case(small_qwen2, tokenizer, critic="adapter")
    sparing = copy.deepcopy(plain)
    sparing[0].model.enable_input_require_grads()
    sparing[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []

    def count(start):
        calls.append(0)
        start[0].eval()
        for block in start[0].model.get_decoder().layers:
            block.mlp.register_forward_pre_hook(count_one)
        return gradient(start, once(microbatch_tokens=10**6))

    def count_one(*_):
        calls[-1] += 1

    usual, spared = count(plain), count(sparing)
    assert calls == [2 + 2, 2 * 2 + 2]  # two blocks, twice for the policy; the critic's activations are kept
    assert (usual - spared).norm() < 1e-5 * usual.norm()


def test_the_gradient_is_that_of_the_mean_over_all_tokens(small_qwen2, tokenizer):
    """Written with the plain model's logits, reply by reply. At a ratio of 1 that of the surrogate is −A ∇ log π."""
    trained, batch, advantages, returns = start = case(small_qwen2, tokenizer)
    settings = once(vf_coef=0.3, cliprange_value=1e6, temperature=0.8)
    found = gradient(start, settings)
    total = 0.0
    for row, (prompt, reply) in enumerate(zip(batch.prompt_ids, batch.reply_ids, strict=True)):
        at, n = slice(len(prompt) - 1, len(prompt) + len(reply) - 1), len(reply)
        out = trained.model(torch.tensor([prompt + reply]), output_hidden_states=True)
        logprobs = torch.log_softmax(out.logits[0, at] / 0.8, -1)[range(n), reply]
        values = trained.value_head(out.hidden_states[-1][0, at])[:, 0]
        total = total - (advantages[row, :n] * logprobs).sum() + 0.3 * 0.5 * ((values - returns[row, :n]) ** 2).sum()
    (total / sum(map(len, batch.reply_ids))).backward()
    wanted = torch.cat([p.grad.flatten() for p in trainable_parameters(trained).values()])
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_the_first_ratio_is_one(small_qwen2, tokenizer, kind):
    small_qwen2.generation_config.update(repetition_penalty=1.3, top_k=5, temperature=3.0)
    start = case(small_qwen2, tokenizer, kind)
    _, done = run(start, ppo(num_mini_batches=4, num_ppo_epochs=1, learning_rate=0.1, temperature=0.8))
    assert abs(done.metrics["val/ratio_first"] - 1) < 1e-5
    _, wrong = run(start, ppo(num_mini_batches=4, num_ppo_epochs=1, temperature=1.0))
    assert abs(wrong.metrics["val/ratio_first"] - 1) > 1e-3  # a temperature left out would show
    assert abs(done.metrics["val/ratio"] - 1) > 1e-3  # the policy has moved by then


def test_gradients_are_clipped_to_their_norm(small_qwen2, tokenizer):
    start = case(small_qwen2, tokenizer)
    free, held = gradient(start, once()), gradient(start, once(max_grad_norm=0.01))
    assert free.norm() > 0.02
    assert held.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(held / held.norm(), free / free.norm(), atol=1e-5)
    _, done = run(start, once(max_grad_norm=0.01))
    assert done.metrics["policy/grad_norm"] == pytest.approx(free.norm().item(), rel=1e-4)


def test_target_kl_ends_the_update_before_the_policy_goes_further(small_qwen2, tokenizer):
    start = case(small_qwen2, tokenizer)
    far = {"learning_rate": 3e-2, "num_mini_batches": 4, "num_ppo_epochs": 3}
    _, whole = run(start, ppo(**far))
    assert (whole.optimizer_steps, whole.stopped_early) == (12, False)
    stopped_at, done = run(start, ppo(**far, target_kl=0.02))
    assert done.stopped_early and 1 <= done.optimizer_steps < 12
    assert done.metrics["policy/approxkl_avg"] <= 0.02
    never, still = run(start, ppo(**far, target_kl=1e9))
    assert not still.stopped_early and apart(never, stopped_at) > 1e-3


def test_the_entropy_bonus_makes_the_policy_less_sure(small_qwen2, tokenizer):
    start = case(small_qwen2, tokenizer)
    trained, batch, *_ = start
    nothing = torch.zeros(batch.mask.shape)

    def entropy_after(coef):
        settings = ppo(learning_rate=1e-3, entropy_coef=coef, vf_coef=0.0)
        updated, _ = run((trained, batch, nothing, nothing), settings)
        updated.eval()
        again = rolled_out_like(updated, batch)
        return float(again.entropy[again.mask].mean())

    none, more = entropy_after(0.0), entropy_after(1.0)
    assert none == pytest.approx(float(batch.entropy[batch.mask].mean()), abs=1e-5)
    assert more > none + 1e-3


def rolled_out_like(trained, batch):
    """The same replies, read by another policy."""
    from manners.methods.ppo.rollout import microbatches, scatter_tokens

    again = copy.deepcopy(batch)
    with torch.no_grad():
        for part in microbatches(again, list(range(len(again.texts))), 10**6, 0):
            judged = trained.forward(part.ids, part.response_mask, 0.8)
            scatter_tokens(again.entropy, judged.entropy, part.rows, again.mask)
            scatter_tokens(again.logprobs, judged.logprobs, part.rows, again.mask)
    return again


def test_good_tokens_grow_likelier_and_bad_ones_rarer(small_qwen2, tokenizer):
    trained, batch, *_ = case(small_qwen2, tokenizer)
    good = torch.zeros(batch.mask.shape)
    good[:4], good[4:] = 1.0, -1.0
    trained, _ = run((trained, batch, good * batch.mask, torch.zeros_like(good)), ppo(learning_rate=3e-3, vf_coef=0.0))
    moved = (rolled_out_like(trained, batch).logprobs - batch.logprobs)[batch.mask]
    assert moved[good[batch.mask] > 0].mean() > 0 > moved[good[batch.mask] < 0].mean()


@pytest.mark.parametrize("broken", ["advantages", "weights"])
def test_a_number_that_breaks_is_told_before_it_reaches_the_weights(small_qwen2, tokenizer, broken):
    trained, batch, advantages, returns = case(small_qwen2, tokenizer)
    if broken == "advantages":
        advantages[0, 0] = math.nan
    else:
        trained.value_head.weight.data[0, 0] = math.inf
    optimizer = make_optimizer(trained, ppo())
    before = {n: p.detach().clone() for n, p in trainable_parameters(trained).items()}
    with pytest.raises(FloatingPointError, match="is not finite"):
        update_policy(trained, optimizer, batch, advantages, returns, once(), random.Random(0), 0, ProcessGroup())
    assert all(torch.equal(p, before[n]) for n, p in trainable_parameters(trained).items())


def test_the_critic_learns_at_a_rate_of_its_own_and_rloo_has_none(small_qwen2):
    for critic in ("head", "adapter"):
        trained = policy(small_qwen2, critic=critic)
        optimizer = make_optimizer(trained, ppo(learning_rate=1e-4, value_learning_rate=1e-2))
        names = {id(p): n for n, p in trained.named_parameters()}
        first, second = ([names[id(p)] for p in g["params"]] for g in optimizer.param_groups)
        assert [g["lr"] for g in optimizer.param_groups] == [1e-4, 1e-2]
        assert all(".default." in n for n in first) and len(first) == 28
        assert len(second) == (2 if critic == "head" else 30)
    trained = policy(small_qwen2, critic="none")
    [group] = make_optimizer(trained, rloo()).param_groups
    assert len(group["params"]) == 28


# --- Two processes ---


@pytest.mark.parametrize("minibatches", [1, 3])
def test_two_processes_do_what_one_would(small_qwen2, tokenizer, minibatches):
    """Two threads, each with its own policy and half the rollout, that add tensors where processes would."""
    start = case(small_qwen2, tokenizer)
    settings = ppo(num_mini_batches=minibatches, microbatch_tokens=64)
    alone, told = run(start, settings)
    meeting, ends = Meeting(), [None, None]

    def work(rank):
        speaker = SimpleNamespace(device="cpu", reduce=lambda tensor, _how: meeting.adder(rank)(tensor.clone()))
        ends[rank] = run(start, settings, ProcessGroup(rank, 2, speaker), slice(4 * rank, 4 * rank + 4))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first, a), (second, b) = ends
    assert apart(start[0], alone) > 1e-3
    assert all(torch.equal(p, trainable_parameters(second)[n]) for n, p in trainable_parameters(first).items())
    assert apart(alone, first) < 1e-4
    assert a.metrics == b.metrics == pytest.approx(told.metrics, rel=1e-3, abs=1e-4)
    assert a.optimizer_steps == told.optimizer_steps


def test_a_share_of_the_rows_is_a_run_of_neighbours():
    worlds = [ProcessGroup(rank, 2) for rank in (0, 1)]
    assert [w.shard(list("abcdef")) for w in worlds] == [["a", "b", "c"], ["d", "e", "f"]]
    assert [w.local_indices([5, 0, 3, 2], 3) for w in worlds] == [[0, 2], [2, 0]]
