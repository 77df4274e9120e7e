"""The models of the page: their replies, streamed; the reward model's scores; the style judge's verdicts."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from manners.chat.model import Bases, ChatModel, load_chat_model
from manners.chat.session import Session
from manners.chat.streaming import SamplingState, prompt_ids, stream_reply
from manners.data.types import Message, Prompt, has_category
from manners.evaluation.evaluate import judged_reply
from manners.evaluation.generate import Reply
from manners.evaluation.judges import Judge, Verdict
from manners.evaluation.metrics.word_credit import WordCredit, word_credits
from manners.pipeline import model_ref
from manners.pipeline.model_ref import ModelRef
from manners.pipeline.style_judge import load_judge
from manners.runtime.device import Device, inference_device

Score = Callable[[Sequence[tuple[list[Message], str]]], list[float]]


@dataclass(frozen=True)
class ReplyOptions:
    """How one reply is sampled; with the model and the messages it is the same again."""

    seed: int
    temperature: float  # 0 is greedy decoding
    max_new_tokens: int
    scale: float = 1.0  # of what training changed


@dataclass
class Models:
    """Models by the name that the page shows; the base is the first run at scale 0."""

    by_name: dict[str, ChatModel]
    base: str  # the name of the base, "" without one
    run_ids: dict[str, str]  # of the runs, in MLflow
    device: Device
    score: Score | None
    judge: Judge | None
    lock: Any  # one forward pass at a time: columns that stream together take turns, token by token

    def stream(self, name: str, messages: list[Message], options: ReplyOptions) -> Iterator[str]:
        """The reply of a model, in chunks. Raises MannersError for messages that its context or template refuses."""
        model, scale = self.by_name[name], 0.0 if name == self.base else options.scale
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        session = Session(tuple(messages[system is not None :]), system)
        generator = torch.Generator().manual_seed(options.seed)
        state = SamplingState(options.max_new_tokens, options.temperature, generator)
        ids, _ = prompt_ids(session, model, options.max_new_tokens)
        chunks = stream_reply(model, ids, "assistant", state, state.draw_uniforms())
        while True:
            with self.lock, torch.inference_mode(), self.device.autocast():
                for other in self.by_name.values():
                    if other is not model and other.model is model.model:  # an adapter on the same base
                        other.set_scale(0.0)
                model.set_scale(scale)
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def reply(self, name: str, messages: list[Message], options: ReplyOptions) -> str:
        return "".join(self.stream(name, messages, options))

    def credits(self, messages: list[Message], reply: str) -> WordCredit | None:
        """The reward model's score of a reply, and what each of its words adds to it; None without a reward model."""
        if self.score is None or not reply.strip():
            return None
        with self.lock:
            return word_credits(self.score, messages, reply)

    def verdict(self, prompt: Prompt, reply: str) -> Verdict | None:
        """What the style judge says of a reply to a prompt whose category is known; None for any other."""
        if self.judge is None or not has_category(prompt):
            return None
        return self.judge([judged_reply(prompt, Reply(reply, True, [], []))])[0]


def load_models(cfg: DictConfig, refs: Sequence[ModelRef], dataset: DictConfig | None) -> Models:
    """The runs, their base, and what scores and judges their replies to ``dataset``. Raises MannersError."""
    device = inference_device(cfg.hardware)
    bases: Bases = {}
    by_name = {ref.name: load_chat_model(ref, device.kind, bases=bases) for ref in refs}
    first = next(iter(by_name.values()))
    base = first.base_name if cfg.base else ""
    if base:
        by_name = {base: first} | by_name
    scored = (
        cfg.reward_from if cfg.reward_from != "auto" else next((r.reward_model for r in refs if r.reward_model), "")
    )
    reward = model_ref.resolve_reward_model(cfg, refs) if scored else None
    return Models(
        by_name,
        base,
        {ref.name: ref.run.run_id for ref in refs if ref.run},
        device,
        model_ref.load_scorer(reward, device.kind) if reward else None,
        load_judge(dataset.style_judge, cfg) if dataset else None,
        threading.Lock(),
    )
