"""What to watch while a policy chases a reward: numbers that break, and replies that collapse."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean

from manners.methods.ppo.rollout import Rollout

WINDOW = 8  # iterations that a trend is read from


def distinct_2(texts: Sequence[str], n: int = 2) -> float:
    """The share of different word n-grams among all: Li et al. 2016, arXiv 1510.03055."""
    grams = [g for t in texts for g in zip(*(t.lower().split()[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_bigrams(texts: Sequence[str]) -> float:
    """The share of a reply's word pairs that it has said before, averaged over the replies."""
    shares = []
    for text in texts:
        words = text.lower().split()
        pairs = list(pairwise(words))
        shares.append(1 - len(set(pairs)) / len(pairs) if pairs else 0.0)
    return mean(shares)


@dataclass
class CollapseDetector:
    """Remembers how the replies were at first, and says so when the reward rises while they decay."""

    first: dict[str, float] = field(default_factory=dict)
    seen: list[dict[str, float]] = field(default_factory=list)  # of the last iterations
    warned: list[str] = field(default_factory=list)

    def watch(self, reward: float, length: float, texts: Sequence[str]) -> list[str]:
        """Warnings that are new, in words."""
        now = {
            "reward": reward,
            "length": length,
            "distinct": distinct_2(texts),
            "repetition": repeated_bigrams(texts),
        }
        self.seen = [*deque(self.seen, WINDOW - 1), now]
        if len(self.seen) < WINDOW:
            return []
        average = {key: mean(entry[key] for entry in self.seen) for key in now}
        if not self.first:
            self.first = average
            return []
        if average["reward"] <= self.first["reward"]:
            return []
        start, found = self.first, {}
        if average["distinct"] < 0.5 * start["distinct"]:
            found["distinct"] = (
                f"their word pairs vary half as much ({start['distinct']:.2f} → {average['distinct']:.2f})"
            )
        if average["length"] < 0.4 * start["length"]:
            found["shorter"] = f"they shrink ({start['length']:.0f} → {average['length']:.0f} tokens)"
        if average["length"] > 2.5 * start["length"]:
            found["longer"] = f"they grow ({start['length']:.0f} → {average['length']:.0f} tokens)"
        if average["repetition"] > start["repetition"] + 0.2:
            found["repetition"] = f"they repeat themselves ({start['repetition']:.0%} → {average['repetition']:.0%})"
        new = [
            f"the reward rises while the replies decay: {why}" for kind, why in found.items() if kind not in self.warned
        ]
        self.warned += [kind for kind in found if kind not in self.warned]
        return new


def dump_batch(rollout: Rollout, folder: Path, why: str) -> Path:
    """What the policy had just said when a number broke, for the one who must find out why."""
    file = folder / "broken_batch.json"
    rows = [
        {"prompt": p.messages, "reply": text, "prompt_ids": a, "reply_ids": b}
        for p, text, a, b in zip(rollout.prompts, rollout.texts, rollout.prompt_ids, rollout.reply_ids, strict=True)
    ]
    file.write_text(json.dumps({"why": why, "rollout": rows}, indent=1, ensure_ascii=False))
    return file
