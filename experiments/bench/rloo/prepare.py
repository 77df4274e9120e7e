"""Write the tiny model with Qwen2.5's vocabulary, so that its head costs what a large one does.

The new rows of the embeddings, which are the head's too, are twice the mean of the old ones, to which the model gives a
low logit. It still strays into them: of 64 sampled replies 8 did, and stayed there, a fifth of all tokens. Both sides
have this same model.
"""

import torch
from rloo_task import LARGE, TINY, model_folder
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder = model_folder("large")
    weights = [path / "model.safetensors" for path in (folder, TINY)]
    if weights[0].exists() and weights[0].stat().st_mtime > weights[1].stat().st_mtime:
        return
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(LARGE, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[len(old) :] = 2 * old.mean(0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)


if __name__ == "__main__":
    main()
