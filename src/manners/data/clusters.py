"""Which rows belong together, for confidence intervals.

Rows of one tree of messages, of one template with another subject, or with one opening, go well or badly together: an
interval that counts each of them as an independent draw is too narrow. Intervals resample clusters instead (Miller
2024, "Adding error bars to evals", arXiv 2411.00640, section 2.2).
"""

import re
from collections.abc import Sequence

import numpy as np

from manners.data.types import Conversation, Prompt


def cluster_ids(rows: Sequence[Prompt | Conversation], prefix_words: int = 0) -> np.ndarray:
    """The cluster of each of N rows, as ids from 0: (N,). Of plain texts the first ``prefix_words`` count, or all."""
    keys = [cluster_key(row, prefix_words) for row in rows]
    return np.unique(keys, return_inverse=True)[1] if keys else np.zeros(0, int)


def cluster_key(row: Prompt | Conversation, prefix_words: int = 0) -> str:
    """What rows of one cluster share: the tree, else the first turn but for the row's ``subject`` and its article.

    A user's first turn has nothing before it: there the turn that is in the data counts. A wrong fact keeps the wrong
    value, so that claims of one template are told apart.
    """
    if tree := row.metadata.get("message_tree_id"):
        return str(tree)
    first = next((m for m in row.messages if m["role"] != "system"), None)
    text = first["content"] if first else str(getattr(row, "reference", None) or "")
    if first and first["role"] == "text" and prefix_words:
        text = " ".join(text.split()[:prefix_words])
    for subject in filter(None, str(row.metadata.get("subject") or "").split(", ")):
        text = re.sub(rf"\b((the|an?)\s+)?{re.escape(subject)}(?!\w)", "…", text, flags=re.IGNORECASE)
    return text
