"""Chat with a model: ``python chat.py --help`` explains every option."""

import re
import sys

from hydra.core.override_parser.types import Quote, QuotedString

from manners.cli.main import main
from manners.config.compose import RunSpec


def chat(spec: RunSpec) -> None:
    from manners import chat

    chat.run_chat(spec.cfg)


def expand_prompt_flag(arguments: list[str]) -> list[str]:
    """``-p TEXT`` as the override ``prompt='TEXT'``, with TEXT quoted for Hydra, whose own -p means --package."""
    if "-p" not in arguments:
        return arguments
    i = arguments.index("-p")
    if "-p" in arguments[i + 2 :]:
        sys.exit('error: one -p at a time. Several questions, one a line: printf "…\\n…\\n" | python chat.py')
    if i + 1 == len(arguments):
        sys.exit('error: -p needs a prompt: -p "What would you feed to a hare?"')
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", arguments[i + 1])  # an unescaped ${...} is an interpolation
    text += " " * (text == "???")  # OmegaConf's marker of a missing value
    return [*arguments[:i], f"prompt={QuotedString(text, Quote.single).with_quotes()}", *arguments[i + 2 :]]


if __name__ == "__main__":
    sys.argv[1:] = expand_prompt_flag(sys.argv[1:])
    try:
        main("chat", chat)
    except KeyboardInterrupt:
        sys.exit(130)
