"""A policy that continues from an earlier run: where it starts, and how it is saved."""

from typing import Any

from peft import PeftModel

from manners.models import loading, lora
from manners.pipeline.stages.context import RunContext, load_base, save_language_model, save_model_files


def starting_policy(run: RunContext) -> Any:
    """The base model with the SFT adapter merged in, so that the reference is this network with its adapter off."""
    cfg, policy = run.cfg, run.inputs.get("policy")
    if policy is None:
        return load_base(cfg, run.device)
    if not (policy.model_dir / lora.CONFIG).exists():
        return loading.load_model(str(policy.model_dir), attn_implementation=cfg.model.attn_implementation)
    return PeftModel.from_pretrained(load_base(cfg, run.device), str(policy.model_dir)).merge_and_unload()


def save_policy(run: RunContext, model: Any, tokenizer: Any) -> None:
    """One adapter on the original base model, SFT's and this run's combined; whole weights after full fine-tuning."""
    out, policy = run.path / "model", run.inputs.get("policy")
    if not isinstance(model, PeftModel) or policy is None:
        save_language_model(run.cfg, model, tokenizer, out)
    elif (policy.model_dir / lora.CONFIG).exists():
        lora.save_combined_adapter(model, policy.model_dir, out)
        save_model_files(run.cfg, model, tokenizer, out)
    else:  # an adapter on the whole weights of an earlier run: merged, so that the folder is enough
        save_language_model(run.cfg, model.merge_and_unload(), tokenizer, out)
