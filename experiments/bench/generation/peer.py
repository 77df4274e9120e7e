"""The peer of the generation line: transformers' ``generate`` with its defaults and its cache.

``top_k=0`` samples from all tokens, as ours and TRL do; the default would sample from the top 50.
"""

import task
import torch


def generate(model: torch.nn.Module, prompts: task.Ids, stop_ids: list[int], seed: int | None) -> task.Ids:
    width = max(map(len, prompts))
    ids = torch.tensor([[task.PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    sampling = {"do_sample": False} if seed is None else {"do_sample": True, "temperature": 1.0, "top_k": 0}
    torch.manual_seed(seed or 0)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=task.NEW_TOKENS,
        eos_token_id=stop_ids or None,
        pad_token_id=task.PAD,
        use_cache=True,
        **sampling,
    )
    return [truncate_at_stop(row, set(stop_ids)) for row in output[:, width:].tolist()]


def truncate_at_stop(ids: list[int], stop_ids: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + 1]


def main() -> None:
    task.measure(task.arguments(), generate)


if __name__ == "__main__":
    main()
