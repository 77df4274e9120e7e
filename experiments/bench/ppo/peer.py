"""The peer's side of the PPO benchmark: TRL 1.12's PPOTrainer, unchanged, on the shared task.

Run it with the Python of an environment of its own (requirements.txt beside this file). It prints one line of JSON;
everything else that TRL prints goes to stderr. Sizes are in MB of 2**20 bytes, times in seconds.
"""

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from task import score
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="N iterations of PPO with TRL 1.12, measured.")
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--prompts", type=Path, required=True, help='JSON Lines of {"ids": [...]}')
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="prompts an iteration")
    parser.add_argument("--new-tokens", type=int, default=48, help="longest reply")
    parser.add_argument("--no-stop", action="store_true", help="EOS ends no reply: all have --new-tokens")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4, help="optimizer steps an epoch")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--lora", action="store_true", help="LoRA of rank 16 on all linear layers (the default)")
    weights.add_argument("--full", action="store_true", help="train all the policy's weights")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--value-lr", type=float, help="learning rate of the critic (default: --lr, as in TRL)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--details", action="store_true", help="TRL's own metrics too")
    return parser.parse_args()


class LeftPadded:
    """Pads prompts on the left, as TRL's generation needs, and notes each batch's width (tokens) for the reward.

    TRL tells a reward model neither the prompt nor its width. Batches come to the reward in the order of this note.
    """

    def __init__(self, pad: int) -> None:
        self.pad, self.widths = pad, deque()

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(row["ids"]) for row in rows)
        self.widths.append(width)
        return {"input_ids": torch.tensor([[self.pad] * (width - len(row["ids"])) + row["ids"] for row in rows])}


class Backbone(torch.nn.Module):
    """What TRL's ``get_reward`` calls: returns the shared score of each reply at every position, as a hidden state."""

    def __init__(self, widths: deque) -> None:
        super().__init__()
        self.widths, self.lengths = widths, []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> "Backbone.Output":
        start = self.widths.popleft()
        # TRL takes a reply to end before its first padding token, whether sampled or filled in.
        ends = attention_mask[:, start:].long().cumprod(1).sum(1).tolist()
        scores = [score(row[:end]) for row, end in zip(input_ids[:, start:].tolist(), ends, strict=True)]
        self.lengths.append(ends)
        return self.Output(torch.tensor(scores).view(-1, 1, 1).expand(-1, input_ids.shape[1], 1))

    class Output:
        def __init__(self, hidden: torch.Tensor) -> None:
            self.hidden_states = (hidden,)


class Reward(torch.nn.Module):
    """The shared score behind the interface of a sequence classification model."""

    base_model_prefix = "model"

    def __init__(self, widths: deque) -> None:
        super().__init__()
        self.model, self.score = Backbone(widths), torch.nn.Identity()


class Clock(TrainerCallback):
    """Wall and CPU seconds of each iteration, from the end of the one before."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.steps, self.taken = [], [], [], 0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.last = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: object, **__: object) -> None:
        now = time.perf_counter(), time.process_time()
        self.wall.append(now[0] - self.last[0])
        self.cpu.append(now[1] - self.last[1])
        self.steps.append(self.taken)
        self.last, self.taken = now, 0

    def count(self, *_: object) -> None:
        """Called after each optimizer step."""
        self.taken += 1


def load_policy(folder: Path, pad: int) -> torch.nn.Module:
    """The policy in float32, with a LoRA unless ``--full``, and no sampling habit of the checkpoint's own."""
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy.generation_config = GenerationConfig(pad_token_id=pad)  # a checkpoint's knobs would leak into TRL's sampling
    if args.full:
        return policy
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(policy, lora)


def load_optimizer(policy: torch.nn.Module, value: torch.nn.Module) -> tuple:
    """TRL's optimizer and schedule at no weight decay (fused AdamW, constant), with the critic's own learning rate."""
    groups = [
        {"params": [p for p in policy.parameters() if p.requires_grad]},
        {"params": list(value.parameters()), "lr": args.lr if args.value_lr is None else args.value_lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def config(folder: str) -> PPOConfig:
    return PPOConfig(
        output_dir=folder,
        # TRL cuts per_device × accumulation rows into minibatches, then those into micro-batches of per_device rows.
        # With the whole batch here, one minibatch is one forward, backward and step; with accumulation above 1,
        # num_mini_batches no longer gives more steps (trl#5645).
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=args.minibatches,
        num_ppo_epochs=args.epochs,
        total_episodes=args.iterations * args.batch,
        local_rollout_forward_batch_size=args.batch,
        response_length=args.new_tokens,
        stop_token=None if args.no_stop else "eos",
        temperature=args.temperature,
        missing_eos_penalty=None,
        kl_coef=args.kl_coef,
        kl_estimator="k1",
        whiten_rewards=False,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        gamma=1.0,
        lam=0.95,
        learning_rate=args.lr,
        seed=args.seed,
        bf16=False,  # TRL ignores both in PPO, but True would set accelerate's variables
        gradient_checkpointing=False,
        use_cpu=True,
        num_sample_generations=0,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def peak_mb() -> float:
    """The most memory that the process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(folder: str) -> dict:
    """Train and return what the JSON line holds. ``folder`` is scratch."""
    torch.set_num_threads(args.threads)
    start = psutil.Process().memory_info().rss / 2**20  # with all that is imported, before any model
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        sys.exit("The tokenizer needs a padding token of its own: TRL would take every EOS for padding.")
    rows = [json.loads(line) for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    if len(rows) < args.batch:
        sys.exit(f"{args.prompts} has {len(rows)} prompts, fewer than --batch {args.batch}: TRL would wait for ever.")
    policy = load_policy(args.model, tokenizer.pad_token_id)
    value = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1, dtype=torch.float32)
    collator, clock = LeftPadded(tokenizer.pad_token_id), Clock()
    reward = Reward(collator.widths)
    optimizers = load_optimizer(policy, value)
    optimizers[0].register_step_post_hook(clock.count)
    trainer = PPOTrainer(
        args=config(folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,  # LoRA: the policy without its adapter; full: TRL copies the policy
        reward_model=reward,
        train_dataset=Dataset.from_list(rows),
        value_model=value,
        data_collator=collator,
        optimizers=optimizers,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    before, peak_before = psutil.Process().memory_info().rss / 2**20, peak_mb()
    trainer.train()
    peak = peak_mb()
    logs = trainer.state.log_history
    result = {
        "side": "trl 1.12.0",
        "weights": "full" if args.full else "lora",
        "wall_s": [round(t, 3) for t in clock.wall],
        "cpu_s": [round(t, 3) for t in clock.cpu],
        "rss_start_mb": round(start),
        "rss_before_mb": round(before),
        "peak_before_mb": round(peak_before),
        "peak_rss_mb": round(peak),
        "score": [round(log["objective/scores"], 4) for log in logs],
        "kl": [round(log["objective/kl"], 4) for log in logs],
        "length": [round(sum(lengths) / len(lengths), 2) for lengths in reward.model.lengths],
        "longest": [max(lengths) for lengths in reward.model.lengths],
        "eos_a_reply": [round(log["val/num_eos_tokens"] / args.batch, 3) for log in logs],
        "optimizer_steps": clock.steps,
    }
    return result | ({"details": logs} if args.details else {})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = measure(folder)
    print(json.dumps(result))


if __name__ == "__main__":
    args = arguments()
    main()
