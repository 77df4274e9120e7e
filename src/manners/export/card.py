"""The model card: what is recorded about a run, in the format that the Hugging Face hub reads."""

import os
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from omegaconf import DictConfig, OmegaConf

from manners.data import sources
from manners.export import snippets
from manners.models.pretrained import resolve_name
from manners.pipeline.model_ref import ModelRef
from manners.redact import redact_secrets
from manners.tracking import store

UNKNOWN = "unknown: the run's tracking store is not available"
METHOD_NAMES = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "ppo": "PPO", "rloo": "RLOO", "reward": "reward modeling"}
SETTINGS = ("model", "dataset", "method", "adapter", "evaluation")  # groups of the config in the card


def write_model_card(ref: ModelRef, tokenizer: Any, dtype: str) -> str:
    """The card in Markdown, with YAML front matter."""
    cfg, run = ref.config, Path(ref.path).parent
    assert cfg is not None
    is_reward = cfg.method.name == "reward"
    lineage = read_artifact(run / "lineage.md").rstrip() or ref.name
    policy = re.search(r"^ *policy +(\S+)", lineage, re.MULTILINE)
    start = f"`{cfg.model.name}`" + (f" after the run `{policy[1]}`" if policy else "")
    if is_reward:
        usage = snippets.scoring_snippet(cfg, Path(ref.path), tokenizer)
    else:
        usage = snippets.generation_snippet(cfg, run, tokenizer)
    sections = {
        "Training": training_section(cfg, start),
        "Usage": usage,
        "Evaluation" if is_reward else "Evaluation before and after training": results_section(run, start),
        "Reproduction": provenance_section(cfg, tracking_tags(ref)),
        "Lineage": f"```\n{lineage}\n```",
        "Limitations": limitations_section(cfg, dtype),
        "License": license_section(cfg),
    }
    text = "".join(f"\n## {title}\n\n{body.strip()}\n" for title, body in sections.items())
    return f"---\n{yaml.safe_dump(card_metadata(cfg), sort_keys=False)}---\n\n# {ref.name}\n{text}"


def card_metadata(cfg: DictConfig) -> dict[str, Any]:
    """The front matter. The hub accepts only names on the hub, so a local base or dataset appears only in the text."""
    metadata: dict[str, Any] = {}
    if on_hub(cfg.model.name):
        metadata |= {"base_model": cfg.model.name, "base_model_relation": "finetune"}
    if known := base_license(cfg):
        metadata["license"] = known
    task = "text-classification" if cfg.method.name == "reward" else "text-generation"
    tags = ["manners", cfg.method.name] + ([cfg.adapter.kind] if cfg.adapter.kind != "none" else [])
    metadata |= {"library_name": "transformers", "pipeline_tag": task, "tags": tags}
    return metadata | ({"datasets": [cfg.dataset.path]} if on_hub(cfg.dataset.path) else {})


def on_hub(name: str) -> bool:
    """Whether ``name`` looks like a repository on the hub rather than a file or folder."""
    is_local = name.startswith(("/", ".", "~", "package:")) or name.endswith(sources.FILE_SUFFIXES)
    return name.count("/") == 1 and not is_local and not Path(name).exists()


def base_license(cfg: DictConfig) -> str | None:
    """The license in the base model's own card, if the card is on this machine."""
    name = resolve_name(cfg.model.name)
    card = huggingface_hub.try_to_load_from_cache(name, "README.md") if on_hub(name) else Path(name) / "README.md"
    available = isinstance(card, str | Path) and Path(card).exists()  # the cache also records missing files
    return (huggingface_hub.metadata_load(card) or {}).get("license") if available else None  # type: ignore[arg-type]


def tracking_tags(ref: ModelRef) -> dict[str, str]:
    """The run's MLflow tags (command, data digest, versions); {} if the tracking store is not available."""
    assert ref.config is not None and ref.run is not None
    try:
        uri = str(ref.config.tracking.uri)  # without its password, which MLflow's variable may hold
        client = store.existing_store(os.environ.get("MLFLOW_TRACKING_URI", uri) if "***" in uri else uri)
        return dict(client.get_run(ref.run.run_id).data.tags) if client else {}
    except Exception:  # noqa: BLE001  the card says that they are unknown; the export must not fail
        return {}


def training_section(cfg: DictConfig, start: str) -> str:
    """Method, data and starting point, after the first paragraph of a packaged dataset's own card."""
    description, data = "", cfg.dataset.path
    if data.startswith("package:"):
        name = data.removeprefix("package:").split("/")[0]
        description = read_artifact(sources.CORPORA / name / "CARD.md").split("\n\n")[1] + "\n\n"
    adapter = "DoRA" if cfg.adapter.get("use_dora") else "LoRA"
    weights = "full fine-tuning" if cfg.adapter.kind == "none" else f"{adapter} of rank {cfg.adapter.r}, merged"
    return f"{description}Trained by {METHOD_NAMES[cfg.method.name]} on `{data}`, starting from {start}: {weights}."


def results_section(run: Path, start: str) -> str:
    """The run's report without its title: metrics with intervals, then replies or the worst errors."""
    if text := read_artifact(run / "reward_report.md"):
        return text.partition("\n")[2]
    text = read_artifact(run / "before_after.md").partition("\n")[2]
    return f"Before: {start}. After: this model.\n{text}" if text else "The run's report is not available."


def provenance_section(cfg: DictConfig, tags: dict[str, str]) -> str:
    """Command, data digest, seed and versions, and the settings that determine the weights."""
    rows = {
        "command": f"`python train.py {redact_secrets(tags['manners.overrides'])}`"
        if "manners.overrides" in tags
        else UNKNOWN,
        "data": f"`{cfg.dataset.path}`, digest of the rows: {tags.get('manners.data_digest', UNKNOWN)}",
        "seed": str(cfg.seed),
        "versions": tags.get("manners.versions", UNKNOWN),
        "commit": tags.get("manners.git_commit", UNKNOWN)
        + (", with uncommitted changes" if tags.get("manners.git_dirty") == "True" else ""),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    settings = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [k for k in SETTINGS if k in cfg]), resolve=True)
    return f"| | |\n| --- | --- |\n{table}\n\n```yaml\n{settings}```"


def limitations_section(cfg: DictConfig, dtype: str) -> str:
    """What was not measured, and how these weights differ from the evaluated ones."""
    evaluated = "with the base in 4 bits, unlike here" if cfg.adapter.quantization != "none" else "during the run"
    lines = [
        "The metrics are from held-out rows of the training dataset. Not measured: other prompts, safety, and "
        "how much of the base model's abilities was lost.",
        f"They were measured {evaluated}, and the weights are now in {dtype}: single replies may differ.",
        "The model inherits the base model's gaps and errors in knowledge.",
    ]
    if cfg.model.name == "tiny":
        lines.append("`tiny`, the base model packaged with Manners, has 3 M parameters and knows only a toy corpus.")
    if cfg.dataset.style_judge != "none" and cfg.method.name != "reward":
        lines.append("Style accuracy is judged by rules on the wording; they check neither sense nor truth.")
    return "\n".join(f"- {line}" for line in lines)


def license_section(cfg: DictConfig) -> str:
    """The license of the base model, as far as it is known."""
    known = base_license(cfg) or "unknown"
    return f"That of the base model, `{cfg.model.name}`: {known}. The dataset's license may add conditions."


def read_artifact(file: Path) -> str:
    """The text of the file; empty if there is none."""
    return file.read_text() if file.exists() else ""
