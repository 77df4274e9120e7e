"""The loss, the schedule and the gradient of supervised fine-tuning, against independent computations."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from manners.data.batching import ResumableBatches, collate, pack, validation_batches
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample
from manners.errors import MannersError
from manners.methods.lightning import fit_with_lightning
from manners.methods.sft import SFTModule, conversation_lengths, sft_loss
from manners.models.lora import prepare_for_training, trainable_parameters
from manners.runtime.device import Device

CPU = Device("cpu", "32")
collate_rows = partial(collate, pad=0)


def examples(count=12, vocab=300):
    """Random conversations of various lengths; the first half of each is context."""
    g = torch.Generator().manual_seed(7)
    rows = []
    for _ in range(count):
        n = int(torch.randint(6, 20, (1,), generator=g))
        ids = torch.randint(5, vocab, (n,), generator=g).tolist()
        rows.append(TokenizedExample(ids, [IGNORE_INDEX] * (n // 2) + ids[n // 2 :]))
    return rows


def module(model, total=8, log=lambda metrics, step: None, kind=SFTModule, **changes):
    settings = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "accumulate": 1,
        "logging_steps": 1,
    }
    return kind(model, log, total, **(settings | changes))


def run(model, folder, steps=8, batch_size=4, accumulate=1, rows=None, eval_steps=3, save_steps=2, patience=0,
        microbatch_size=None, **changes):  # fmt: skip
    """Train ``model``; the result, and the module that was trained."""
    rows = rows or examples()
    folder.mkdir(exist_ok=True)
    batches = ResumableBatches(
        rows, batch_size, collate_rows, steps, accumulate, seed=3, group_by_length=True, microbatch_size=microbatch_size
    )
    trained = module(model, total=steps, accumulate=batches.accumulate, **changes)
    eval_batches = validation_batches(rows[:4], 2, collate_rows)
    return fit_with_lightning(trained, batches, eval_batches, folder, CPU, eval_steps, save_steps, patience), trained


def weights(model):
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def test_sft_loss_equals_nll_of_full_logits(small_qwen2):
    batch = collate(examples(5), pad=0)
    nll, num_correct, num_targets = sft_loss(small_qwen2, batch)
    logits = small_qwen2(batch["input_ids"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    expected = [
        -F.log_softmax(logits[b, t].double(), -1)[targets[b, t]]
        for b in range(targets.shape[0])
        for t in range(targets.shape[1])
        if targets[b, t] != IGNORE_INDEX
    ]
    assert num_targets == len(expected)
    assert nll.item() == pytest.approx(float(sum(expected)), rel=1e-5)
    assert 0 <= num_correct <= num_targets


def test_sft_loss_ignores_padding(small_qwen2):
    short, long = sorted(examples(), key=lambda e: len(e.input_ids))[:: len(examples()) - 1]
    separate = sft_loss(small_qwen2, collate([short], 0))[0] + sft_loss(small_qwen2, collate([long], 0))[0]
    padded = sft_loss(small_qwen2, collate([short, long], pad=short.input_ids[-1]))[0]  # padded with a real token
    assert padded.item() == pytest.approx(separate.item(), rel=1e-5)


def rows_with_a_system_message():
    rows = [list(range(5, 30)) + e.input_ids for e in examples(6)]
    return [TokenizedExample(ids, [IGNORE_INDEX] * 28 + ids[28:]) for ids in rows]


def tokens_read(model, batch, **settings):
    """How many tokens the embeddings look up for one training loss, and its gradient."""
    model.zero_grad()
    trained, counts = module(model, **settings).train(), []
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, ids, _out: counts.append(ids[0].numel()))
    torch.manual_seed(0)
    trained.compute_loss(batch)[0].backward()
    hook.remove()
    return sum(counts), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_system_message_is_read_once_unless_noise_is_drawn(small_qwen2):
    batch = collate(rows_with_a_system_message(), pad=0)
    size, prefix = batch["input_ids"].numel(), 25
    model = prepare_for_training(small_qwen2, "lora", 4, 8, 0.0, "all-linear")
    shared, gradient = tokens_read(model, batch)
    assert shared <= size - 5 * prefix  # five of six rows do not repeat it
    model.config._attn_implementation = "eager"  # which takes no shared reading
    alone, separate = tokens_read(model, batch)
    assert alone == size and torch.allclose(gradient, separate, atol=1e-4 * float(separate.abs().max()))
    model.config._attn_implementation = "sdpa"
    assert tokens_read(model, batch, neftune_noise_alpha=5.0)[0] == size
    dropped = prepare_for_training(small_qwen2, "lora", 4, 8, 0.1, "all-linear")
    assert tokens_read(dropped, batch)[0] == size


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "microbatch_size"),
    [(6, 1, None), (3, 2, None), (2, 3, None), (1, 6, None), (6, 1, 2), (6, 1, 4), (3, 2, 2)],
)
def test_optimizer_step_is_independent_of_microbatch(small_qwen2, tmp_path, batch_size, accumulate, microbatch_size):
    """Six rows with unequal numbers of target tokens: a mean of the microbatches' means would differ."""
    rows = examples(6)
    before = weights(small_qwen2)
    split = {"batch_size": batch_size, "accumulate": accumulate, "microbatch_size": microbatch_size}
    run(small_qwen2, tmp_path / "a", steps=1, rows=rows, max_grad_norm=0.0, **split)
    update = {name: p - before[name] for name, p in weights(small_qwen2).items()}
    torch.manual_seed(0)
    reference = type(small_qwen2)(small_qwen2.config)
    reference.load_state_dict(before, strict=False)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2 / 3, weight_decay=0.0)  # the first warm-up step
    loss, _, num_targets = sft_loss(reference, collate(rows, 0))
    (loss / num_targets).backward()
    optimizer.step()
    for name, p in trainable_parameters(reference).items():
        assert torch.allclose(p - before[name], update[name], atol=2e-5), name


def test_weight_decay_spares_norms_and_biases(small_qwen2):
    groups = module(small_qwen2, weight_decay=0.1).configure_optimizers()["optimizer"].param_groups
    decays = {g["weight_decay"]: {p.ndim for p in g["params"]} for g in groups}
    assert decays == {0.1: {2}, 0.0: {1}}


def test_logged_gradient_norm_is_from_before_clipping(small_qwen2, tmp_path):
    logged = []
    run(small_qwen2, tmp_path / "a", steps=1, log=lambda m, s: logged.append(m), max_grad_norm=1e-9, learning_rate=1.0)
    assert next(m["train/grad_norm"] for m in logged if "train/grad_norm" in m) > 1e-3


def test_lora_adapts_every_linear_layer_and_starts_as_the_base(small_qwen2):
    ids = torch.arange(5, 25)[None]
    before = small_qwen2(ids).logits
    model = prepare_for_training(small_qwen2, "lora", 4, 8, 0.0, "all-linear")
    assert torch.equal(model(ids).logits, before)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable_parameters(model)}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all("lora_" in name for name in trainable_parameters(model))


def test_gradient_checkpointing_changes_no_gradient(small_qwen2):
    batch = collate(examples(4), 0)
    gradients = []
    for checkpointing in (False, True):
        model = prepare_for_training(
            small_qwen2, "none", 1, 1, 0.0, "all-linear", gradient_checkpointing=checkpointing
        ).train()
        model.zero_grad()
        sft_loss(model, batch)[0].backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in gradients[0])
    assert model.is_gradient_checkpointing


def test_fit_keeps_the_best_weights_not_the_last(small_qwen2, tmp_path):
    """With a learning rate that ruins the model, an early validation is the best."""
    result, trained = run(small_qwen2, tmp_path / "a", steps=12, learning_rate=3.0, lr_scheduler_type="constant")
    assert result.best_step < result.steps == 12
    trained.eval()
    sums = [sft_loss(trained.model, b) for b in validation_batches(examples()[:4], 2, collate_rows)]
    loss = sum(float(s[0]) for s in sums) / sum(s[2] for s in sums)
    assert loss == pytest.approx(result.best_loss, rel=1e-4)


def test_early_stopping_ends_a_run_without_improvement(small_qwen2, tmp_path):
    logged = {}
    result, _ = run(
        small_qwen2, tmp_path / "a", steps=60, learning_rate=3.0, lr_scheduler_type="constant", eval_steps=2,
        patience=2, log=lambda m, s: logged.update({s: m["eval/loss"]} if "eval/loss" in m else {}),
    )  # fmt: skip
    losses = list(logged.values())
    without_improvement = [i - losses.index(min(losses[: i + 1])) for i in range(len(losses))]
    assert without_improvement.index(2) == len(losses) - 1  # it ends at the second in a row, and not before
    assert result.steps == list(logged)[-1] < 60


def test_fit_raises_on_a_gradient_that_is_not_finite(small_qwen2, tmp_path):
    with torch.no_grad():
        small_qwen2.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(MannersError, match="step 0"):
        run(small_qwen2, tmp_path / "a")


def test_neftune_is_that_of_transformers_without_padding(small_qwen2):
    batch = collate([TokenizedExample(list(range(5, 21)), list(range(5, 21)))] * 3, pad=0)
    trained = module(small_qwen2.train(), neftune_noise_alpha=5.0)
    torch.manual_seed(3)
    ours = trained.compute_loss(batch)[0]
    hook = activate_neftune(small_qwen2, 5.0)
    torch.manual_seed(3)
    theirs = sft_loss(small_qwen2, batch)[0]
    deactivate_neftune(small_qwen2, hook)
    without = sft_loss(small_qwen2, batch)[0]
    assert torch.allclose(ours, theirs, rtol=1e-6) and not torch.allclose(ours, without, rtol=1e-4)
    assert torch.equal(trained.eval().compute_loss(batch)[0], without)  # as in the validation


def test_neftune_noise_is_scaled_by_the_conversations_length(small_qwen2):
    """Neither padding nor the neighbours in a packed row count."""
    rows = [TokenizedExample(ids, ids) for ids in ([5] * 12, [6] * 4, [7] * 3)]
    padded, packed = collate(rows, pad=0), collate(pack(rows, 17), pad=0)
    assert conversation_lengths(padded).tolist() == [[12] * 12, [4] * 12, [3] * 12]
    assert conversation_lengths(packed).tolist() == [[12] * 12 + [4] * 4, [3] * 3 + [13] * 13]
    outputs, embedding = [], small_qwen2.get_input_embeddings()
    trained = module(small_qwen2.train(), neftune_noise_alpha=5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_qwen2.model.rotary_emb, "forward", lambda x, *_, **__: outputs.append(x) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained.compute_loss(padded)
    noise = (outputs[0] - embedding(padded["input_ids"])).abs().amax(2)  # (B, T)
    for row, length in enumerate((12, 4, 3)):
        most = 5 / (length * embedding.embedding_dim) ** 0.5
        assert 0.8 * most < noise[row].max() <= most * (1 + 1e-5)
    assert not embedding._forward_hooks
