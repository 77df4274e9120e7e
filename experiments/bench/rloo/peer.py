"""The peer's side of the RLOO benchmark: TRL 1.16's RLOOTrainer, unchanged, on the shared task.

Each optimizer step is one forward and backward over a minibatch; a rollout serves ``MINIBATCHES`` of them an epoch.
"""

import contextlib
import sys
import tempfile
from statistics import fmean

import rloo_task
from datasets import Dataset
from peft import LoraConfig
from task import score
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from trl import RLOOConfig, RLOOTrainer


class IterationTimer(TrainerCallback):
    """Times each iteration: a rollout and the optimizer steps on it."""

    def __init__(self, clock: rloo_task.Clock, steps: int) -> None:
        self.clock, self.steps = clock, steps

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_step_end(self, _args: object, state: object, *_: object, **__: object) -> None:
        if state.global_step % self.steps == 0:
            self.clock.lap()


def config(args: object, folder: str, steps: int) -> RLOOConfig:
    return RLOOConfig(
        output_dir=folder,
        per_device_train_batch_size=args.batch // args.minibatches,
        gradient_accumulation_steps=1,
        steps_per_generation=args.minibatches,
        num_iterations=args.epochs,
        num_generations=rloo_task.NUM_GENERATIONS,
        max_completion_length=args.new_tokens,
        max_steps=(args.iterations + 1) * steps,
        learning_rate=rloo_task.LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        beta=rloo_task.KL_COEF,
        epsilon=rloo_task.CLIPRANGE,
        max_grad_norm=rloo_task.MAX_GRAD_NORM,
        temperature=1.0,
        logging_steps=steps,
        seed=args.seed,
        use_cpu=True,
        bf16=args.bf16,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    args = rloo_task.arguments("Iterations of TRL's RLOO, measured.")
    clock, lengths, scores = rloo_task.Clock(), [], []

    def reward(completion_ids: list[list[int]], **_columns: object) -> list[float]:
        lengths.append([len(ids) for ids in completion_ids])
        rewards = [score(ids) for ids in completion_ids]
        scores.append(fmean(rewards))
        return rewards

    folder = args.model or rloo_task.model_folder(args.vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=rloo_task.torch.float32)
    # Else the sampling parameters of the checkpoint would apply.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    ids = rloo_task.prompts(tokenizer, args.seed)
    texts = tokenizer.batch_decode(ids)
    assert tokenizer(texts)["input_ids"] == ids, "TRL would get other prompts"
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    steps = args.minibatches * args.epochs
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=reward,
            args=config(args, scratch, steps),
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=tokenizer,
            peft_config=lora if args.lora else None,
            callbacks=[IterationTimer(clock, steps)],
        )
        trainer.train()
    logs = [log for log in trainer.state.log_history if "kl" in log]
    # TRL logs the KL per token, ours the KL per reply.
    kl = [log["kl"] * fmean(reply_lengths) for log, reply_lengths in zip(logs, lengths, strict=True)]
    rloo_task.print_result(clock, scores, lengths, kl, trainer.state.global_step // len(clock.cpu))


if __name__ == "__main__":
    main()
