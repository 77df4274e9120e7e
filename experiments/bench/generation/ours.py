"""Our side of the generation line: the package's native decoding."""

import task
import torch

from manners.models.generation import Sampling, generate_ids


def generate(model: torch.nn.Module, prompts: task.Ids, stop_ids: list[int], seed: int | None) -> task.Ids:
    if seed is None:
        return generate_ids(model, prompts, Sampling(task.NEW_TOKENS, tuple(stop_ids), task.PAD))
    uniforms = torch.rand(len(prompts), task.NEW_TOKENS, generator=torch.Generator().manual_seed(seed))
    return generate_ids(model, prompts, Sampling(task.NEW_TOKENS, tuple(stop_ids), task.PAD, temperature=1.0), uniforms)


def main() -> None:
    task.measure(task.arguments(), generate)


if __name__ == "__main__":
    main()
