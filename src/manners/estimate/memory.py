"""The peak memory of a run, counted by parts from its configs and its longest rows; see ``manners.models.memory``."""

from collections import Counter
from dataclasses import dataclass

from omegaconf import DictConfig

from manners.config.compose import RunSpec
from manners.estimate.worst_case import WorstCaseBatch
from manners.evaluation.evaluate import LOSS_BATCH_SIZE
from manners.methods.microbatching import training_setup
from manners.models import memory
from manners.models.memory import TrainingSetup
from manners.pipeline.dependencies import resolve_explicit
from manners.runtime.device import Device


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part at the fullest moment of a run, and the phase that it is in."""

    parts: Counter[str]
    phase: str

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.parts.total()


def estimate_peak_memory(
    cfg: DictConfig, device: Device, worst: WorstCaseBatch, rows: int, reward_cfg: DictConfig | None
) -> MemoryEstimate:
    """Count the fullest phase, with microbatches of ``rows`` rows; ``reward_cfg`` made the reward model of PPO."""
    is_online = cfg.method.sample_type == "prompt"
    setup = training_setup(cfg, device)
    phases = {"training": training_phase(cfg, setup, worst, rows)}
    if cfg.method.name != "reward":
        length = worst.length if is_online else worst.length + cfg.evaluation.max_new_tokens
        scored = min(LOSS_BATCH_SIZE, cfg.method.get("per_device_eval_batch_size", 1))
        scored = max(1, 4096 // worst.length) if is_online else scored  # as ``reference_nll``
        phases["evaluation"] = generation_phase(setup, cfg.evaluation.batch_size, length)
        phases["evaluation"] |= Counter({memory.LOGITS: setup.logits(scored * worst.targets)})
        if is_online:  # sampling happens between updates: gradients and optimizer states stay
            sampling = generation_phase(setup, cfg.method.batch_size, worst.length)
            phases["sampling"] = sampling | setup.states()
            phases["evaluation"][memory.REFERENCE] += setup.weight_bytes  # the base model, to compare with
    if is_online:
        scorer = 4 * training_setup(reward_cfg, device).shape.num_parameters if reward_cfg else 0  # merged, in 32 bits
        resident = Counter({memory.REFERENCE: setup.weight_bytes * (not setup.lora_rank), memory.REWARD_MODEL: scorer})
        phases = {name: parts + resident for name, parts in phases.items()}
    name, parts = max(phases.items(), key=lambda phase: phase[1].total())
    return MemoryEstimate(+(parts + memory.runtime_parts(device, parts)), name)


def training_phase(cfg: DictConfig, setup: TrainingSetup, worst: WorstCaseBatch, rows: int) -> Counter[str]:
    """An optimizer step on the longest rows."""
    m = cfg.method
    if m.sample_type == "prompt":
        rows = max(1, min(rows, m.microbatch_tokens // worst.length))
    step = setup.training_step(rows, worst.length, rows * worst.targets if setup.shape.has_lm_head else 0)
    if m.name == "dpo":  # TRL's loss keeps tensors of their size in 32 bits: one, beside logits in 16 bits three
        step[memory.LOGITS] += (4 if setup.matmul_bytes == 4 else 12) * rows * worst.targets * setup.shape.vocab
    return step


def generation_phase(setup: TrainingSetup, rows: int, length: int) -> Counter[str]:
    """Replies to ``rows`` prompts, with ``length`` tokens of prompt and reply each."""
    parts = setup.states()
    del parts[memory.GRADIENTS], parts[memory.OPTIMIZER]
    if setup.lora_rank and not setup.quantized and setup.device.kind == "cpu":
        parts[memory.WEIGHTS] += 4 * setup.shape.linear_weights  # a copy, while the adapter is merged
    parts[memory.CACHE] = setup.cache(rows, length)
    parts[memory.LOGITS] = 3 * 4 * rows * setup.shape.vocab
    return parts


def reward_config(spec: RunSpec) -> DictConfig | None:
    """The config of the reward model that a run needs; for a folder without one, with the folder as its model."""
    need = next((need for need in spec.dependencies if need.role == "reward"), None)
    if need is None or not need.explicit_source:
        return need.cfg if need else None
    artifact = resolve_explicit(need)
    made_by = artifact.config or need.cfg.copy()
    if not (artifact.model_dir / "adapter_config.json").exists():  # an adapter's config names its base
        made_by.model.name, made_by.model.revision = str(artifact.model_dir), None
    return made_by
