"""One run, from top to bottom."""

import logging
import math
import os
import warnings
from pathlib import Path

import lightning as L
import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from manners import chain, cost, hardware, lineage, preview, registry, several, tracking
from manners.chain import Stage
from manners.data.encode import encode
from manners.errors import MannersError
from manners.fits import dividing, settling
from manners.fits.advice import out_of_memory
from manners.lineage import Input
from manners.methods import rewards
from manners.methods.fit import discard_checkpoints
from manners.methods.ppo.world import join
from manners.models import base
from manners.stages import dpo, online, reward, sft
from manners.stages.run import Outcome, Run, console, load_tokenizer
from manners.tracking import Silent

METHODS = {"sft": sft.train, "reward": reward.train, "dpo": dpo.train, "ppo": online.train, "rloo": online.train}


def run(stage: Stage, needs: list[Stage]) -> float | None:
    """Train as ``stage.cfg`` says and return the metric that a sweep optimises.

    ``needs`` are the stages whose results it starts from: each is found among the finished runs, or trained first. With
    ``preview=true`` only the data are shown, with ``fit=true`` only what the run would take.
    """
    quiet()
    if stage.cfg.preview:
        show_examples(stage)
        return None
    check_length(stage.cfg)
    if stage.cfg.fit:
        from manners.fits import answer  # what imagines tensors, which other runs need not wait for

        answer.show(stage, needs, console)
        return None
    with out_of_memory(stage.cfg):
        return train(stage, needs)


def train(stage: Stage, needs: list[Stage]) -> float | None:
    cfg, data_digest = stage.cfg, stage.digest
    device = hardware.resolve(cfg.hardware.accelerator, cfg.hardware.precision, cfg.hardware.num_threads)
    check_device(cfg, device)
    if several.to_be_started(cfg.hardware.devices):
        several.start([*stage.overrides, *of_sweep(cfg)], cfg.hardware.devices)
        found = lineage.finished(cfg.output_dir, chain.mark(stage))
        return lineage.load_state(found.model.parent).get("metric") if found else None
    if cfg.method.view == "prompt":  # a function that cannot be found ends the run before its stages are trained
        rewards.build(OmegaConf.to_container(cfg.method.rewards, resolve=True), model=len)  # type: ignore[arg-type]
    inputs = {need.role: found for need in needs if (found := settle(need)) is not None}
    marks = {role: found.mark for role, found in inputs.items()}
    world = join(device.kind, cfg.method.name, cfg.hardware.devices)
    if world.rank:  # one process speaks for all; the others only train
        console.quiet = True
        folder = lineage.Folder(Path(world.hear()), {})
        cfg = dividing.apart(cfg, lineage.load_state(folder.path)["parts"])
        L.seed_everything(cfg.seed, verbose=False)  # as the first does: adapters begin at random
        return METHODS[cfg.method.name](Run(cfg, stage.splits, device, folder, Silent(), inputs, world)).metric
    rows = len(stage.splits.train)
    with lineage.claim(cfg, data_digest, marks) as folder:
        with tracking.open_run(cfg, folder, rows, data_digest, inputs, stage.overrides) as tracker:
            cost.start(folder)
            if cfg.sweep.trial is not None:
                from manners.sweep.search import watcher  # Optuna, which other runs need not wait for

                tracker.watch = watcher(cfg)
            announce(cfg, folder, device, stage, inputs)
            lean = dividing.apart(cfg, parts_of(stage, device, needs, folder))
            world.tell(str(folder.path))
            L.seed_everything(cfg.seed, verbose=False)
            outcome = METHODS[cfg.method.name](Run(lean, stage.splits, device, folder, tracker, inputs, world))
            tracker.log(cost.total(folder, device.kind), 0)
            drawing = draw(folder, tracker, outcome, inputs)
        if cfg.register:  # only now does the store surely have the model
            registry.put(cfg, tracker.client, tracker.run_id, outcome.metric)
        finish(folder, outcome, inputs, drawing)
    if cfg.sweep.parent:
        console.print(outcome.summary, highlight=False)
    elif not stage.role:
        say_next(cfg, folder)
    return outcome.metric


def parts_of(stage: Stage, device: hardware.Device, needs: list[Stage], folder: lineage.Folder) -> int:
    """How many parts rows are read in. A run that goes on keeps to those it began with: it counts its micro-batches."""
    if "parts" not in folder.state:
        folder.remember(parts=settling.settle(stage, device, needs, console.print))
    return int(folder.state["parts"])


def of_sweep(cfg: DictConfig) -> list[str]:
    """What a sweep told its job, which is no part of the job's own command."""
    told = {key: cfg.sweep[key] for key in ("parent", "trial", "journal", "pruner")}
    return [f"sweep.{key}={value}" for key, value in told.items() if value is not None]


def settle(need: Stage) -> Input | None:
    """The result that a stage starts from: a given one, a finished one, or one trained here and now."""
    if need.given:
        return chain.take(need)
    mark = chain.mark(need)
    output_dir = need.cfg.output_dir
    found = chain.find(need, mark)
    if found is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise MannersError(f"the {need.role} run is not there yet. Train it first, in one process: {need.command}")
        wait = lambda: console.print(f"another job is training the {need.role}: waiting for it")  # noqa: E731
        with lineage.turn(output_dir, mark, wait):
            found = chain.find(need, mark)
            if found is None:
                console.rule(need.role, align="left")
                console.print(need.command, highlight=False, soft_wrap=True)
                run(need, [])
                found = chain.find(need, mark)
    assert found is not None, "a stage that has just finished is found"
    return found


def draw(folder: lineage.Folder, tracker: tracking.Tracker, outcome: Outcome, inputs: dict[str, Input]) -> str:
    """The chain that the run is the end of, kept with it."""
    drawing = chain.draw(folder, outcome.summary, inputs)
    (folder.path / "lineage.md").write_text(drawing)
    tracker.artifact(folder.path / "lineage.md")
    tracker.tag(best_step=str(outcome.best_step), summary=outcome.summary)
    return drawing


def finish(folder: lineage.Folder, outcome: Outcome, inputs: dict[str, Input], drawing: str) -> None:
    """Mark the run as done, now that the tracker has sent all it could, and say where everything is."""
    made_of = {role: str(found.model) for role, found in inputs.items()}
    done = {"metric": outcome.metric, "best_step": outcome.best_step, "summary": outcome.summary, "inputs": made_of}
    folder.remember(status="finished", **done)
    discard_checkpoints(folder.path)
    if inputs:
        console.print(f"\n{drawing}", highlight=False)
    console.print(f"\nmodel, report and figures: {folder.path}", highlight=False, soft_wrap=True)


def say_next(cfg: DictConfig, folder: lineage.Folder) -> None:
    report = next(p for p in (folder.path / "before_after.md", folder.path / "reward_report.md") if p.exists())
    uri = cfg.tracking.uri
    ui = "make ui" if uri == "sqlite:///outputs/mlflow.db" else f".venv/bin/mlflow ui --backend-store-uri {uri}"
    ui = uri if uri.startswith("http") else ui  # a server shows itself
    console.print(f"look next at: {report}", highlight=False, soft_wrap=True)
    console.print(f"compare runs: {ui}", highlight=False, soft_wrap=True)


def check_device(cfg: DictConfig, device: hardware.Device) -> None:
    if cfg.method.view == "prompt" and device.precision == "fp16":
        raise MannersError(f"method={cfg.method.name} does not scale its loss for fp16: hardware.precision=bf16 or 32.")
    there = {"cpu": math.inf, "mps": 1, "cuda": max(1, torch.cuda.device_count())}[device.kind]
    if cfg.hardware.devices > there:
        raise MannersError(f"hardware.devices={cfg.hardware.devices}, and of {device.kind} devices there are {there}.")
    if cfg.method.get("generation") == "vllm" and device.kind != "cuda":
        raise MannersError("method.generation=vllm needs an NVIDIA GPU; there is none here: method.generation=auto.")


def check_length(cfg: DictConfig) -> None:
    m = cfg.method
    longest = base.context_length(cfg.model.name, cfg.model.revision)
    for needed, keys in (
        (m.get("max_length", 0), "method.max_length"),
        (m.get("max_prompt_length", 0) + m.get("response_length", 0), "method.max_prompt_length + response_length"),
    ):
        if needed > longest:
            raise MannersError(f"{keys}={needed} is longer than {cfg.model.name} can read: {longest} tokens or less.")


def show_examples(stage: Stage) -> None:
    cfg = stage.cfg
    tokenizer = load_tokenizer(cfg)
    length = cfg.method.get("max_length") or cfg.method.max_prompt_length + cfg.method.response_length
    preview.show(console, stage.splits, encode(stage.splits.train, tokenizer, cfg.dataset.train_on, length), tokenizer)


def announce(
    cfg: DictConfig, folder: lineage.Folder, device: hardware.Device, stage: Stage, inputs: dict[str, Input]
) -> None:
    console.print(
        Text.assemble(
            (folder.path.name, "bold"),
            f"  {cfg.method.name}, {cfg.model.name}, {cfg.adapter.kind}, on {device.kind}, {device.number_format}",
        )
    )
    for role, found in inputs.items():
        console.print(f"{role}: {found.run}", highlight=False)
    s = stage.splits
    console.print(f"rows: {len(s.train)} train, {len(s.validation)} validation, {len(s.test)} test", highlight=False)
    for note in s.notes:
        console.print(f"left out: {note}", highlight=False)
    if s.skipped:
        console.print(f"left out (dataset.on_error=skip): {len(s.skipped)} rows, the first: {s.skipped[0]}")
    if (folder.path / "last.ckpt").exists():
        console.print("going on from the last checkpoint of an unfinished run (resume=false starts anew)")
    elif folder.again:
        console.print("this very run has finished before: running it once more, in a folder of its own")
    if not s.validation and not s.test:
        raise MannersError("no rows are held out: set dataset.validation_share above 0, or add rows.")


def quiet() -> None:
    """Hush what libraries say about themselves; what they say about the run stays."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()  # "score.weight is new": so it is meant
    warnings.filterwarnings("ignore", module="lightning|transformers")
    warnings.filterwarnings("ignore", message=".*lightning.*|.*dataloader.*|.*`tags`.*")
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # they need no pages there
    warnings.filterwarnings("ignore", category=FutureWarning)
