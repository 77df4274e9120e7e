"""Blind comparisons: which prompt comes next for a person, and the two replies to it, in random order.

Prompts come in one shuffled order for everybody, and a reply is a function of its prompt, its model and the seed. So
several people judge the same pairs, and what they agree on can be measured.
"""

import hashlib
import json
import random
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig

from manners.data import loading
from manners.data.formats.votes import Vote
from manners.data.types import Message, Prompt, distinct_prompts, prompts_of
from manners.errors import MannersError
from manners.web.models import Models, ReplyOptions
from manners.web.vote_file import VoteFile

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Ballot:
    """Two replies to a prompt as one person sees them: the page is told the texts, and not whose they are."""

    id: str
    prompt: Prompt
    replies: list[dict[str, Any]]  # text, model, seed, temperature and scale, in the order shown

    @property
    def models(self) -> list[str]:
        return [reply["model"] for reply in self.replies]

    @property
    def row(self) -> dict[str, Any]:
        """What a vote on it says of the replies."""
        return {"prompt": self.prompt.messages, "replies": self.replies}


class Ballots:
    """Deals ballots; the replies of the next one are sampled while a person reads."""

    def __init__(self, cfg: DictConfig, dataset: DictConfig | None, models: Models, votes: VoteFile):
        """Raises MannersError for prompts that are not there."""
        self.cfg, self.models, self.votes = cfg, models, votes
        self.prompts = held_out_prompts(cfg, dataset)
        random.Random(cfg.seed).shuffle(self.prompts)
        self.dealt: dict[str, Ballot] = {}
        self.sampled: dict[tuple[str, int, str], Future[str]] = {}  # by prompt, sample and model
        self.worker = ThreadPoolExecutor(1)
        self.lock = threading.Lock()

    @property
    def categories(self) -> set[str]:
        """Of the prompts, as the style judge knows them."""
        return {self.category(prompt) for prompt in self.prompts} - {""}

    def category(self, prompt: Prompt) -> str:
        return str((prompt.metadata.get("categories") or [prompt.metadata.get("category", "")])[-1])

    def pairs(self) -> list[list[str]]:
        """The models that can be compared: each with each, and the last with itself."""
        names = list(self.models.by_name)
        return [[a, b] for i, a in enumerate(names) for b in names[i + 1 :]] + [[names[-1], names[-1]]]

    def next(self, annotator: str, pair: Sequence[str], typed: str = "") -> Ballot | None:
        """The next ballot for ``annotator``, on their own prompt or the first they have not judged; None at the end.

        Prompts to which both replies are the same, and those that the models cannot read, are passed over. Raises
        MannersError for a typed one that they cannot read, or that the person has judged.
        """
        if typed.strip():
            prompt = Prompt([{"role": "user", "content": typed.strip()}])
            if prompt_key(prompt) in self.judged(annotator, pair):
                raise MannersError("you have judged this comparison already.")
            return self.deal(prompt, pair)
        judged = self.judged(annotator, pair)
        left = [p for p in self.prompts if prompt_key(p) not in judged]
        for number, prompt in enumerate(left):
            ballot = None
            with suppress(MannersError):
                ballot = self.deal(prompt, pair)
            if ballot is not None:
                for following in left[number + 1 : number + 2]:
                    self.replies(following, pair)  # sampled by the worker meanwhile
                return ballot
        return None

    def judged(self, annotator: str, pair: Sequence[str]) -> set[str]:
        """Keys of the prompts to which ``annotator`` has judged both replies."""
        votes = self.votes.standing()
        return {prompt_key(v) for v in votes if v.annotator == annotator and sorted(v.models) == sorted(pair)}

    def deal(self, prompt: Prompt, pair: Sequence[str]) -> Ballot | None:
        """A ballot with both replies in random order; None where they are the same."""
        texts = [future.result() for future in self.replies(prompt, pair)]
        if texts[0] == texts[1]:
            return None
        replies = [
            {
                "text": text,
                "model": model,
                "run_id": self.models.run_ids.get(model, ""),
                **vars(self.options(prompt, k)),
            }
            for k, (model, text) in enumerate(zip(pair, texts, strict=True))
        ]
        random.SystemRandom().shuffle(replies)
        ballot = Ballot(secrets.token_hex(6), prompt, replies)
        with self.lock:
            self.dealt[ballot.id] = ballot
        return ballot

    def replies(self, prompt: Prompt, pair: Sequence[str]) -> list["Future[str]"]:
        """The replies of both models, which the worker samples one after the other."""
        futures = []
        for k, model in enumerate(pair):
            key = (prompt_key(prompt), k, model)
            with self.lock:
                if key not in self.sampled:
                    options = self.options(prompt, k)
                    self.sampled[key] = self.worker.submit(self.models.reply, model, prompt.messages, options)
                futures.append(self.sampled[key])
        return futures

    def options(self, prompt: Prompt, sample: int) -> ReplyOptions:
        """Sampling of one of the two replies, with a seed of its own that everybody's ballot has."""
        text = f"{self.cfg.seed}/{sample}/{prompt_key(prompt)}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        temperature = self.cfg.temperature if self.cfg.do_sample else 0.0
        return ReplyOptions(seed, temperature, self.cfg.max_new_tokens)


def prompt_key(of: Prompt | Vote) -> str:
    """What makes two prompts the same one."""
    return json.dumps(of.prompt if isinstance(of, Vote) else of.messages)


def held_out_prompts(cfg: DictConfig, dataset: DictConfig | None) -> list[Prompt]:
    """The prompts of ``cfg.prompts``: a held-out part of the dataset, a file, or none.

    Raises MannersError where there are none, and for runs that play the user.
    """
    if cfg.prompts == "none":
        return []
    if cfg.prompts not in SPLITS:
        file = SimpleNamespace(eval_prompts_file=cfg.prompts, format="auto", score_field="none")
        return loading.eval_prompts(file)  # type: ignore[arg-type]  # what it reads of a dataset
    if dataset is None:
        raise MannersError("none of these is a run of ours: prompts=FILE.jsonl, or dataset=strictbot.", "prompts")
    if dataset.loss_roles == "user":
        raise MannersError("these runs play the user, and the page asks for replies of the assistant.", "run")
    rows = getattr(loading.load_splits(dataset), cfg.prompts)
    prompts: list[Prompt] = distinct_prompts(prompts_of(rows))
    if not prompts:
        other = SPLITS[cfg.prompts == SPLITS[0]]
        raise MannersError(
            f"dataset.path={dataset.path} has no {cfg.prompts} rows: prompts={other}, prompts=FILE.jsonl, or "
            "prompts=none to type them.",
            "prompts",
        )
    return prompts


def with_system(messages: list[Message], system: str) -> list[Message]:
    """The conversation after a system message, where there is one."""
    return [{"role": "system", "content": system.strip()}, *messages] if system.strip() else messages
