"""Load a tokenizer by its model's name, with a chat template. Imports no model: rows are refused before torch is."""

from collections.abc import Sequence

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.models.pretrained import from_pretrained
from manners.models.templates import TEMPLATES, adapted_for_training, writes


def load_tokenizer(
    name: str,
    revision: str | None = None,
    chat_template: str = "auto",
    require_template: bool = True,
    added_tokens: Sequence[str] = (),
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a padding token, right padding and, if ``require_template``, a chat template.

    A base model without one gets that of ``TEMPLATES`` which ``chat_template`` names; "auto" keeps the model's own.
    ``added_tokens`` become special tokens where the template writes them, and else tokens of the text; the model's
    embeddings must grow with them (``lora.resize_embeddings``).
    Raises MannersError if the tokenizer cannot be loaded or a required template is missing.
    """
    tokenizer = from_pretrained(AutoTokenizer.from_pretrained, name, revision)
    tokenizer.add_tokens(list(added_tokens))
    if chat_template != "auto":
        tokenizer.chat_template = TEMPLATES[chat_template]
    if require_template and tokenizer.chat_template is None:
        raise MannersError(f"model.name={name} has no chat template. Choose one: model.chat_template=plain.")
    if tokenizer.pad_token is None:  # safe, since labels and attention masks never depend on the padding token
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is not None:
        markers = [token for token in added_tokens if writes(tokenizer, token)]  # of roles, which are no text
        tokenizer.add_special_tokens({"additional_special_tokens": markers})
        tokenizer.chat_template = adapted_for_training(tokenizer)
    tokenizer.padding_side = "right"
    return tokenizer
