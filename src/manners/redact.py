"""Secrets in URLs, hidden in whatever is printed, logged or written: messages, run files, cards, reports."""

import re


def redact_secrets(text: str) -> str:
    """``text`` without the passwords and access tokens of the URLs in it."""
    text = re.sub(r"""(\w://[^\s:/@'"]*:)[^\s'"]*@""", r"\1***@", text)
    text = re.sub(r"(https?://)[^\s:/@]+@", r"\1***@", text)
    secret = r"\w*password|(?:\w+[_-])?token|api[_-]?key|auth|sig(?:nature)?"
    # More than one of them may stand in a URL, so each match is that of the parameter alone.
    return re.sub(rf"""([?&](?:{secret})=)[^\s&'"]+""", r"\1***", text, flags=re.IGNORECASE)
