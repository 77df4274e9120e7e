"""A chat model for lm-eval, which gives it the prompts that the model was trained on. Needs the extra "[eval]"."""

from typing import Any

from lm_eval.models.huggingface import HFLM

from manners.data.rendering import TemplateRefusal, text_between_turns
from manners.models.loading import stop_token_ids


class ChatLM(HFLM):
    """HFLM with the chat template's space before a reply, and all of its stop tokens.

    Of a template such as "Assistant: ..." the space belongs to the token of the reply's first word, so that prompts end
    without it (``rendering.prompt_text``). lm-eval puts nothing between a rendered prompt and a choice, and would score
    "Assistant:Oslo", which such a model has never seen.
    """

    def __init__(self, pretrained: Any, tokenizer: Any, **kwargs: Any):
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, **kwargs)
        try:
            self.space = " " if text_between_turns(("user", "assistant"), tokenizer)[1].endswith(" ") else ""
        except TemplateRefusal:
            self.space = ""
        self.stop_ids = stop_token_ids(pretrained, tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The rendered prompt; a space at its end is counted to what follows, as HFLM does with all spaces."""
        prompt = str(super().apply_chat_template(chat_history, add_generation_prompt))
        return prompt + self.space if add_generation_prompt else prompt

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> Any:
        """The token ids of prompts that are answered by generation: the model writes the space itself."""
        return super().tok_batch_encode([text.removesuffix(self.space) for text in strings], *args, **kwargs)

    def generate_until(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[str]:
        """The replies, without the space."""
        return [text.removeprefix(self.space) for text in super().generate_until(requests, *args, **kwargs)]

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        return super()._model_generate(*args, **kwargs, eos_token_id=self.stop_ids)
