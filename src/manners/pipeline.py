"""One run, from top to bottom."""

import logging
import os
import warnings
from pathlib import Path

import lightning as L
import transformers
from omegaconf import DictConfig, OmegaConf

from manners import chain, hardware, lineage, preview, tracking
from manners.chain import Stage
from manners.data.encode import encode
from manners.data.rows import digest
from manners.errors import MannersError
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
    ``preview=true`` only the data are shown.
    """
    quiet()
    cfg, data_digest = stage.cfg, digest(stage.splits.train)
    if cfg.preview:
        show_examples(stage)
        return None
    device = hardware.resolve(cfg.hardware.accelerator, cfg.hardware.precision, cfg.hardware.num_threads)
    check_length(cfg)
    check_device(cfg, device)
    if cfg.method.view == "prompt":  # a function that cannot be found ends the run before its stages are trained
        rewards.build(OmegaConf.to_container(cfg.method.rewards, resolve=True), model=len)  # type: ignore[arg-type]
    inputs = {need.role: found for need in needs if (found := settle(need)) is not None}
    marks = {role: found.mark for role, found in inputs.items()}
    world = join(device.kind, cfg.method.name)
    if world.rank:  # one process speaks for all; the others only train
        folder = lineage.Folder(Path(world.hear()), {})
        L.seed_everything(cfg.seed, verbose=False)  # as the first does: adapters begin at random
        return METHODS[cfg.method.name](Run(cfg, stage.splits, device, folder, Silent(), inputs, world)).metric
    with (
        lineage.claim(cfg, data_digest, marks) as folder,
        tracking.open_run(cfg, folder, len(stage.splits.train), data_digest, inputs, stage.overrides) as tracker,
    ):
        announce(cfg, folder, device, stage, inputs)
        world.tell(str(folder.path))
        L.seed_everything(cfg.seed, verbose=False)
        outcome = METHODS[cfg.method.name](Run(cfg, stage.splits, device, folder, tracker, inputs, world))
        finish(folder, tracker, outcome, inputs)
    if not stage.role:
        say_next(cfg, folder)
    return outcome.metric


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


def finish(folder: lineage.Folder, tracker: tracking.Tracker, outcome: Outcome, inputs: dict[str, Input]) -> None:
    """Mark the run as done, link it with those it came from, and say where everything is."""
    drawing = chain.draw(folder, outcome.summary, inputs)
    (folder.path / "lineage.md").write_text(drawing)
    tracker.artifact(folder.path / "lineage.md")
    tracker.tag(best_step=str(outcome.best_step), summary=outcome.summary)
    made_of = {role: str(found.model) for role, found in inputs.items()}
    folder.remember(status="finished", best_step=outcome.best_step, summary=outcome.summary, inputs=made_of)
    discard_checkpoints(folder.path)
    if inputs:
        console.print(f"\n{drawing}", highlight=False)
    console.print(f"\nmodel, report and figures: {folder.path}", highlight=False, soft_wrap=True)


def say_next(cfg: DictConfig, folder: lineage.Folder) -> None:
    report = next(p for p in (folder.path / "before_after.md", folder.path / "reward_report.md") if p.exists())
    ui = "make ui" if cfg.output_dir == "outputs" else f".venv/bin/mlflow ui --backend-store-uri {cfg.tracking.uri}"
    console.print(f"look next at: {report}", highlight=False, soft_wrap=True)
    console.print(f"compare runs: {ui}", highlight=False, soft_wrap=True)


def check_device(cfg: DictConfig, device: hardware.Device) -> None:
    if cfg.method.view == "prompt" and device.precision == "fp16":
        raise MannersError(f"method={cfg.method.name} does not scale its loss for fp16: hardware.precision=bf16 or 32.")
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
        f"[bold]{folder.path.name}[/]  {cfg.method.name}, {cfg.model.name}, {cfg.adapter.kind}, on {device.kind}, "
        f"{device.number_format}"
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
