"""SmolLM2-135M-Instruct as all sides of a line load it, in a folder of its own: ``python smollm.py`` writes it.

Its tokenizer pads with EOS, which TRL's PPO refuses: here it pads with ``<|endoftext|>``. The weights stay where the
package keeps them. Where they are not to be had, nothing is written, and run.py skips the cases.
"""

import sys
from pathlib import Path

NAME, FOLDER = "HuggingFaceTB/SmolLM2-135M-Instruct", Path("outputs/bench/smollm2-135m")
WEIGHTS, PAD = "model.safetensors", "<|endoftext|>"


def main() -> None:
    if (FOLDER / WEIGHTS).exists():
        return
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from manners.errors import MannersError
    from manners.models.pretrained import resolve_name

    try:
        source = Path(resolve_name(NAME))  # the name itself where only the hub has it
    except MannersError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return
    if not (source / WEIGHTS).exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = PAD
    tokenizer.save_pretrained(FOLDER)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.from_pretrained(source)
    config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(FOLDER)
    GenerationConfig(**ids).save_pretrained(FOLDER)
    (FOLDER / WEIGHTS).unlink(missing_ok=True)  # a link to weights that have gone
    (FOLDER / WEIGHTS).symlink_to((source / WEIGHTS).resolve())


if __name__ == "__main__":
    main()
