"""The model card: what the run knows of itself, in the layout that the Hugging Face hub reads."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from omegaconf import DictConfig, OmegaConf

from manners.data import sources
from manners.export import snippets
from manners.models import loading
from manners.pipeline.model_ref import ModelRef
from manners.tracking import store

LOST = "not known: the tracking store of the run is not here"
NAMES = {"sft": "SFT", "dpo": "DPO", "ppo": "PPO", "rloo": "RLOO", "reward": "a reward model's loss"}
SETTINGS = ("model", "dataset", "method", "adapter", "evaluation")  # groups of the config that the card repeats


def write_model_card(chosen: ModelRef, tokenizer: Any, dtype: str) -> str:
    """The card as markdown, its metadata in yaml before it."""
    cfg, run = chosen.config, Path(chosen.model).parent
    assert cfg is not None
    scores = cfg.method.name == "reward"
    family = read_artifact(run / "lineage.md").rstrip() or chosen.name
    policy = re.search(r"^ *policy +(\S+)", family, re.MULTILINE)
    start = f"`{cfg.model.name}`" + (f" as `{policy[1]}` had taught it" if policy else "")
    sections = {
        "What it was taught": training_section(cfg, start),
        "How to use it": snippets.scoring_snippet(cfg, Path(chosen.model))
        if scores
        else snippets.generation_snippet(cfg, run, tokenizer),
        "How well it scores" if scores else "Before and after": results_section(run, start),
        "How it was made": provenance_section(cfg, tracking_tags(chosen)),
        "Where it comes from": f"```\n{family}\n```",
        "Limits": limits_section(cfg, dtype),
        "Licence": licence(cfg),
    }
    text = "".join(f"\n## {title}\n\n{body.strip()}\n" for title, body in sections.items())
    return f"---\n{yaml.safe_dump(card_metadata(cfg), sort_keys=False)}---\n\n# {chosen.name}\n{text}"


def card_metadata(cfg: DictConfig) -> dict[str, Any]:
    """The metadata. The hub refuses names that are not its own: a local base or file is named in the text alone."""
    found: dict[str, Any] = {}
    if on_hub(cfg.model.name):
        found |= {"base_model": cfg.model.name, "base_model_relation": "finetune"}
    if known := license_of(cfg):
        found["license"] = known
    task = "text-classification" if cfg.method.name == "reward" else "text-generation"
    tags = ["manners", cfg.method.name] + ([cfg.adapter.kind] if cfg.adapter.kind != "none" else [])
    found |= {"library_name": "transformers", "pipeline_tag": task, "tags": tags}
    return found | ({"datasets": [cfg.dataset.path]} if on_hub(cfg.dataset.path) else {})


def on_hub(name: str) -> bool:
    local = name.startswith(("/", ".", "~", "package:")) or name.endswith(sources.FORMATS) or Path(name).exists()
    return name.count("/") == 1 and not local


def license_of(cfg: DictConfig) -> str | None:
    """What the base's own card says, where that is on this machine."""
    name = loading.resolve_name(cfg.model.name)
    card = huggingface_hub.try_to_load_from_cache(name, "README.md") if on_hub(name) else Path(name) / "README.md"
    here = isinstance(card, str | Path) and Path(card).exists()  # the cache may know, too, that there is none
    return (huggingface_hub.metadata_load(card) or {}).get("license") if here else None  # type: ignore[arg-type]


def tracking_tags(chosen: ModelRef) -> dict[str, str]:
    """The run's tags in its tracking store: command, digest, versions. Empty where the store is not to be had."""
    assert chosen.config is not None and chosen.run is not None
    try:
        client = store.existing_store(chosen.config.tracking.uri)
        return dict(client.get_run(chosen.run.run_id).data.tags) if client else {}
    except Exception:  # noqa: BLE001  gone, moved or down: the card says so, and is written all the same
        return {}


def training_section(cfg: DictConfig, start: str) -> str:
    """The first paragraph of the data's own card, where the package has one; then method, data and start."""
    words, data = "", cfg.dataset.path
    if data.startswith("package:"):
        name = data.removeprefix("package:").split("/")[0]
        words = read_artifact(sources.CORPORA / name / "CARD.md").split("\n\n")[1] + "\n\n"
    how = "all weights" if cfg.adapter.kind == "none" else f"a LoRA of rank {cfg.adapter.r}, merged in"
    return f"{words}By {NAMES[cfg.method.name]} on `{data}`, from {start}: {how}."


def results_section(run: Path, start: str) -> str:
    """The run's own report, less its title: numbers with their intervals, then replies or worst errors."""
    if text := read_artifact(run / "reward_report.md"):
        return text.partition("\n")[2]
    text = read_artifact(run / "before_after.md").partition("\n")[2]
    return f"Before: {start}. After: this model.\n{text}" if text else "The run's report is not here."


def provenance_section(cfg: DictConfig, tags: dict[str, str]) -> str:
    """The command, the digest of the data, seed and versions; then every setting that shaped the weights."""
    lines = {
        "command": f"`python train.py {tags['manners.overrides']}`" if "manners.overrides" in tags else LOST,
        "data": f"`{cfg.dataset.path}`, digest of the training rows: {tags.get('manners.data_digest', LOST)}",
        "seed": str(cfg.seed),
        "versions": tags.get("manners.versions", LOST),
        "commit": tags.get("manners.git_commit", LOST)
        + (", changed" if tags.get("manners.git_dirty") == "True" else ""),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in lines.items())
    settings = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [k for k in SETTINGS if k in cfg]), resolve=True)
    return f"| | |\n| --- | --- |\n{table}\n\n```yaml\n{settings}```"


def limits_section(cfg: DictConfig, dtype: str) -> str:
    """What nobody has measured, and where this folder differs from what was."""
    was = "with the base in 4 bits; here it is whole" if cfg.adapter.quantization != "none" else "by the run itself"
    lines = [
        "The numbers are of held-out rows of its own data. Nothing else was measured: no other prompts, no safety, not "
        "what of its base's abilities it has lost.",
        f"They were taken {was}, and the weights are now in {dtype}: single replies may differ.",
        "What its base does not know or gets wrong, it does not know or gets wrong too.",
    ]
    if cfg.model.name == "tiny":
        lines.append("`tiny`, the base in Manners' own package, has 3 M parameters and knows a small world, no more.")
    if cfg.dataset.style_judge != "none" and cfg.method.name != "reward":
        lines.append("Rules judge whether a manner fits, by the marks of a tone. They hear neither sense nor truth.")
    return "\n".join(f"- {line}" for line in lines)


def licence(cfg: DictConfig) -> str:
    known = license_of(cfg)
    told = f"The base, `{cfg.model.name}`, says: {known}." if known else f"That of the base, `{cfg.model.name}`."
    return f"{told} The data may ask for more."


def read_artifact(file: Path) -> str:
    return file.read_text() if file.exists() else ""
