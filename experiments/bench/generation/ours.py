"""Our side of the generation line: the package's own decoding."""

import task
import torch

from manners.models.generation import Sampling, generate_ids


def reply(model: torch.nn.Module, prompts: task.Ids, stops: list[int], seed: int | None) -> task.Ids:
    if seed is None:
        return generate_ids(model, prompts, Sampling(task.NEW_TOKENS, tuple(stops), task.PAD))
    uniforms = torch.rand(len(prompts), task.NEW_TOKENS, generator=torch.Generator().manual_seed(seed))
    return generate_ids(model, prompts, Sampling(task.NEW_TOKENS, tuple(stops), task.PAD, temperature=1.0), uniforms)


def main() -> None:
    task.measure(task.arguments(), reply)


if __name__ == "__main__":
    main()
