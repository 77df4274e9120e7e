"""Talk with a model: ``python chat.py --help`` explains every option."""

import re
import sys

from hydra.core.override_parser.types import Quote, QuotedString

from manners.cli.main import main
from manners.config.compose import RunSpec


def chat(spec: RunSpec) -> None:
    from manners import chat

    chat.run_chat(spec.cfg)


def spelled_out(words: list[str]) -> list[str]:
    """``-p TEXT`` as the override ``prompt='TEXT'``, whatever is in it; Hydra's own -p is --package."""
    if "-p" not in words:
        return words
    at = words.index("-p")
    if at + 1 == len(words):
        sys.exit('error: -p wants a prompt: -p "What would you feed to a hare?"')
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", words[at + 1])  # ${...} would be a reference to another option
    text += " " * (text == "???")  # which would be a value still to come
    return [*words[:at], f"prompt={QuotedString(text, Quote.single).with_quotes()}", *words[at + 2 :]]


if __name__ == "__main__":
    sys.argv[1:] = spelled_out(sys.argv[1:])
    try:
        main("chat", chat)
    except KeyboardInterrupt:
        sys.exit(130)
