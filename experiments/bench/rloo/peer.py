"""The peer's side of the RLOO line: TRL 1.16's RLOOTrainer, unchanged, on the shared game.

Each optimizer step is one forward and backward over a minibatch; a rollout serves ``MINIBATCHES`` of them an epoch.
"""

import contextlib
import sys
import tempfile
from statistics import fmean

import game
from datasets import Dataset
from peft import LoraConfig
from task import score
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from trl import RLOOConfig, RLOOTrainer


class Laps(TrainerCallback):
    """An iteration is a rollout with all the optimizer steps that learn from it."""

    def __init__(self, clock: game.Clock, steps: int) -> None:
        self.clock, self.steps = clock, steps

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_step_end(self, _args: object, state: object, *_: object, **__: object) -> None:
        if state.global_step % self.steps == 0:
            self.clock.lap()


def config(args: object, folder: str, steps: int) -> RLOOConfig:
    return RLOOConfig(
        output_dir=folder,
        per_device_train_batch_size=game.BATCH // game.MINIBATCHES,
        gradient_accumulation_steps=1,
        steps_per_generation=game.MINIBATCHES,
        num_iterations=args.epochs,
        num_generations=game.SIBLINGS,
        max_completion_length=game.NEW_TOKENS,
        max_steps=(args.iterations + 1) * steps,
        learning_rate=game.RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        beta=game.KL,
        epsilon=game.RANGE,
        max_grad_norm=game.CLIP,
        temperature=1.0,
        logging_steps=steps,
        seed=args.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    args = game.arguments("Iterations of TRL's RLOO, measured.")
    clock, lengths, scores = game.Clock(), [], []

    def reward(completion_ids: list[list[int]], **_columns: object) -> list[float]:
        lengths.append([len(ids) for ids in completion_ids])
        found = [score(ids) for ids in completion_ids]
        scores.append(fmean(found))
        return found

    folder = game.model_folder(args.vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=game.torch.float32)
    # A checkpoint's own sampling knobs would leak in.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    ids = game.prompts(tokenizer, args.seed)
    texts = tokenizer.batch_decode(ids)
    assert tokenizer(texts)["input_ids"] == ids, "TRL would read other prompts"
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    steps = game.MINIBATCHES * args.epochs
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=reward,
            args=config(args, scratch, steps),
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=tokenizer,
            peft_config=lora if args.lora else None,
            callbacks=[Laps(clock, steps)],
        )
        trainer.train()
    logs = [log for log in trainer.state.log_history if "kl" in log]
    # TRL tells the KL a token, ours the KL a reply.
    kl = [log["kl"] * fmean(some) for log, some in zip(logs, lengths, strict=True)]
    game.say(clock, scores, lengths, kl, trainer.state.global_step // len(clock.cpu))


if __name__ == "__main__":
    main()
