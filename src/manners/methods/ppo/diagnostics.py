"""Signs of reward hacking in the replies, and the batch to look at when a number is not finite."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from manners.data.ngrams import distinct_2, repeated_ngrams, texts_with_commonest_sentence
from manners.methods.ppo.rollout import Rollout

WINDOW = 8  # iterations that a trend is averaged over
RISE_OF_COMMONEST = 0.1  # of all replies: if a third of the prompts ask for a manner, nearly a third of its replies


def repeated_bigrams(texts: Sequence[str]) -> float:
    """The fraction of a reply's word bigrams that occurred in it before, averaged over the replies."""
    return mean(repeated_ngrams(text, 2) for text in texts)


@dataclass
class CollapseDetector:
    """Warns when the reward rises while the replies degenerate, compared with the first iterations of the run."""

    first: dict[str, float] = field(default_factory=dict)  # means over the first WINDOW iterations
    recent: list[dict[str, float]] = field(default_factory=list)  # the last WINDOW iterations
    warned: list[str] = field(default_factory=list)  # kinds of warning given already

    def update(self, reward: float, length: float, texts: Sequence[str]) -> list[str]:
        """New warnings after an iteration with this mean reward, mean length in tokens and these replies."""
        current = {
            "reward": reward,
            "length": length,
            "distinct_2": distinct_2(texts),
            "repeated_bigrams": repeated_bigrams(texts),
            "commonest": mean(texts_with_commonest_sentence(texts)),
        }
        if self.recent and self.recent[0].keys() != current.keys():  # from the checkpoint of an older version
            self.first, self.recent = {}, []
        self.recent = [*self.recent, current][-WINDOW:]
        if len(self.recent) < WINDOW:
            return []
        average = {key: mean(entry[key] for entry in self.recent) for key in current}
        if not self.first:
            self.first = average
            return []
        if average["reward"] <= self.first["reward"]:
            return []
        start, causes = self.first, {}
        if average["distinct_2"] < 0.5 * start["distinct_2"]:
            causes["distinct_2"] = f"distinct-2 has halved ({start['distinct_2']:.2f} → {average['distinct_2']:.2f})"
        if average["length"] < 0.4 * start["length"]:
            causes["shorter"] = f"they get shorter ({start['length']:.0f} → {average['length']:.0f} tokens)"
        if average["length"] > 2.5 * start["length"]:
            causes["longer"] = f"they get longer ({start['length']:.0f} → {average['length']:.0f} tokens)"
        if average["repeated_bigrams"] > start["repeated_bigrams"] + 0.2:
            change = f"{start['repeated_bigrams']:.0%} → {average['repeated_bigrams']:.0%}"
            causes["repeated_bigrams"] = f"they repeat themselves ({change} of their bigrams)"
        if average["commonest"] > start["commonest"] + RISE_OF_COMMONEST:
            change = f"{start['commonest']:.0%} → {average['commonest']:.0%}"
            causes["commonest"] = f"more of them have one and the same sentence ({change})"
        new = {kind: why for kind, why in causes.items() if kind not in self.warned}
        self.warned += new
        return [f"the reward rises while the replies degenerate: {why}" for why in new.values()]


def dump_batch(rollout: Rollout, folder: Path, why: str) -> Path:
    """Write the rollout at hand when a number was not finite, for whoever must find out why."""
    file = folder / "broken_batch.json"
    rows = [
        {"prompt": p.messages, "reply": text, "prompt_ids": a, "reply_ids": b}
        for p, text, a, b in zip(rollout.prompts, rollout.texts, rollout.prompt_ids, rollout.reply_ids, strict=True)
    ]
    file.write_text(json.dumps({"why": why, "rollout": rows}, indent=1, ensure_ascii=False))
    return file
