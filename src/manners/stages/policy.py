"""A policy that goes on from an earlier run's: where it starts, and how it is saved."""

from typing import Any

from peft import PeftModel

from manners.models import adapters, base
from manners.stages.run import Run, load_base, save_beside, save_language_model


def starting_policy(run: Run) -> Any:
    """The base, with what SFT taught it merged in: so the reference is the network with its adapter off."""
    cfg, policy = run.cfg, run.inputs.get("policy")
    if policy is None:
        return load_base(cfg, run.device)
    if not (policy.model / "adapter_config.json").exists():
        return base.load(str(policy.model), attn_implementation=cfg.model.attn_implementation)
    return PeftModel.from_pretrained(load_base(cfg, run.device), str(policy.model)).merge_and_unload()


def save(run: Run, model: Any, tokenizer: Any) -> None:
    """One adapter on the hub's base, wherever training began: SFT's and this run's in one. Whole weights otherwise."""
    out, policy = run.path / "model", run.inputs.get("policy")
    earlier = policy.model if policy and (policy.model / "adapter_config.json").exists() else None
    if not isinstance(model, PeftModel) or policy is None:
        save_language_model(run.cfg, model, tokenizer, out)
    elif earlier:
        adapters.save_combined(model, earlier, out)
        save_beside(run.cfg, model, tokenizer, out)
    else:  # an adapter on whole weights of a run's own: merged, so that the folder is enough
        save_language_model(run.cfg, model.merge_and_unload(), tokenizer, out)
