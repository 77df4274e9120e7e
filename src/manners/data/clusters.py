"""Which rows belong together, for confidence intervals.

Rows of one tree of messages, of one template with another subject, or with one opening, go well or badly together: an
interval that counts each of them as an independent draw is too narrow. Intervals resample clusters instead (Miller
2024, "Adding error bars to evals", arXiv 2411.00640, section 2.2).
"""

import re
from collections.abc import Sequence

import numpy as np

from manners.data.types import Conversation, Prompt


def cluster_ids(rows: Sequence[Prompt | Conversation]) -> np.ndarray:
    """The cluster of each of N rows, as ids from 0: (N,)."""
    return np.unique([cluster_key(row) for row in rows], return_inverse=True)[1] if rows else np.zeros(0, int)


def cluster_key(row: Prompt | Conversation) -> str:
    """What rows of one cluster share: the tree, else the first turn but for the row's ``subject`` and its article."""
    if tree := row.metadata.get("message_tree_id"):
        return str(tree)
    first = next((m["content"] for m in row.messages if m["role"] != "system"), "")
    subject = row.metadata.get("subject")
    if not subject:
        return first
    return re.sub(rf"\b((the|an?)\s+)?{re.escape(str(subject))}", "…", first, flags=re.IGNORECASE)
