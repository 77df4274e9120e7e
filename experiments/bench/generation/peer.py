"""The peer's side of the generation line: transformers' ``generate`` as it comes, with its cache.

``top_k=0`` has it sample from all tokens, as ours does and as TRL asks of it; its own default would take 50.
"""

import task
import torch


def reply(model: torch.nn.Module, prompts: task.Ids, stops: list[int], seed: int | None) -> task.Ids:
    width = max(map(len, prompts))
    ids = torch.tensor([[task.PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    sampling = {"do_sample": False} if seed is None else {"do_sample": True, "temperature": 1.0, "top_k": 0}
    torch.manual_seed(seed or 0)
    new = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=task.NEW_TOKENS,
        eos_token_id=stops or None,
        pad_token_id=task.PAD,
        use_cache=True,
        **sampling,
    )
    ends = set(stops)
    return [until_stop(row, ends) for row in new[:, width:].tolist()]


def until_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def main() -> None:
    task.measure(task.arguments(), reply)


if __name__ == "__main__":
    main()
