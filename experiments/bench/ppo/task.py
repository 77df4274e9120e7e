"""The task that both sides of the PPO benchmark share: the prompts and the score of a reply.

The score needs nothing but Python, so that the peer's environment can import it. Run this file with the project's
Python to write the prompts.
"""

import argparse
import json
import time
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[3] / "src" / "manners"
WISHED_LENGTH = 12  # tokens: near the mean of the packaged tiny model, so that replies neither vanish nor run on


def is_good(token_id: int) -> bool:
    """Whether the id is in the good half of the vocabulary: one bit of a multiplicative hash.

    Of this bit, half the tokens that the packaged tiny model says before any training are good, and its stop token is
    not: there is much to learn, and stopping at once does not pay.
    """
    return (token_id * 2654435761 >> 22) % 2 == 1


def score(completion_token_ids: list[int]) -> float:
    """How good a reply is, up to 1.0: more tokens of the good half, and a length near ``WISHED_LENGTH``.

    The ids are the sampled tokens, with the stop token where the reply has one and without padding. The share of good
    tokens is centred (−1 none, 0 half, 1 all); each token of length beside the wish costs 1/24.
    """
    length = len(completion_token_ids)
    share = sum(map(is_good, completion_token_ids)) / length if length else 0.0
    return 2 * share - 1 - abs(length - WISHED_LENGTH) / (2 * WISHED_LENGTH)


class Clock:
    """CPU and wall seconds between ``start`` and ``stop``."""

    def start(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self.cpu, time.perf_counter() - self.wall


def prompts(model: Path, corpus: Path, rows: int, whole: bool = False) -> list[list[int]]:
    """Token ids of the first ``rows`` training chats, each up to its first reply, with the generation prompt.

    ``whole`` keeps each chat up to its last reply: one row in ten is then three to seven times as long as the others.
    """
    from transformers import AutoTokenizer  # only the writer of the prompts needs it

    tokenizer = AutoTokenizer.from_pretrained(model)
    with corpus.open(encoding="utf-8") as file:
        chats = [row["messages"] for row in map(json.loads, file) if row["split"] == "train"][:rows]
    asked = [chat[: -1 if whole else 1] for chat in chats]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        for chat in asked
    ]


def main() -> None:
    """Write the prompts as JSON Lines: {"ids": [...]}."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=PACKAGE / "models" / "tiny")
    parser.add_argument(
        "--corpus", type=Path, default=PACKAGE / "data" / "corpora" / "strictbot_tiny" / "generated.jsonl"
    )
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--whole", action="store_true", help="whole chats up to the last reply, not only the first")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    ids = prompts(args.model, args.corpus, args.rows, args.whole)
    args.out.write_text("".join(json.dumps({"ids": row}) + "\n" for row in ids), encoding="utf-8")


if __name__ == "__main__":
    main()
