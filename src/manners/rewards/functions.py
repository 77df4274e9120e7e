"""Reward functions to name in ``method.rewards``: ``_target_: manners.rewards.functions.brevity``.

README.md has them in a table. Each docstring says what is paid for, in which unit and range, and how a policy exploits
it: a function that is paid for alone is maximized by replies that nobody wants.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from manners.data.ngrams import word_ngrams
from manners.data.readable import LETTERS, unknown_words
from manners.data.types import Message
from manners.errors import MannersError
from manners.runtime import model_files


def length(completions: Sequence[Any], at_least: int, at_most: int, **_columns: Any) -> list[float]:
    """0 for ``at_least`` to ``at_most`` words; below, falling to −1 for none; above, −1 for each further ``at_most``.

    Words are what white space separates. In (−∞, 0]. Exploited by padding, and by stopping in mid-sentence. Raises
    MannersError for bounds that are no range.
    """
    if not 0 <= at_least <= at_most or not at_most:
        raise MannersError(f"length: at_least={at_least} and at_most={at_most} are no range of words.")
    counts = [len(c[0]["content"].split()) for c in completions]
    return [-max(0, at_least - n) / max(at_least, 1) - max(0, n - at_most) / at_most for n in counts]


def brevity(completions: Sequence[Any], words: int = 30, **_columns: Any) -> list[float]:
    """0 up to ``words`` words, and −1 for each further ``words``: in (−∞, 0]. Exploited by saying nothing."""
    return length(completions, 0, words)


def distinct_bigrams(completions: Sequence[Any], **_columns: Any) -> list[float]:
    """Different word bigrams over all bigrams of a reply: 1 where it never repeats itself, near 0 for a loop.

    In (0, 1]. Exploited by short replies, which have nothing to repeat, and by lists of unconnected words.
    """
    scores = []
    for completion in completions:
        bigrams = list(pairwise(completion[0]["content"].lower().split()))
        scores.append(len(set(bigrams)) / len(bigrams) if bigrams else 1.0)
    return scores


def variety(prompts: Sequence[Any], completions: Sequence[Any], n: int = 4, **_columns: Any) -> list[float]:
    """Minus the share of a reply's runs of ``n`` words that a reply to another prompt has, too, or it has twice.

    In [−1, 0]. It keeps a policy from answering all prompts by one sentence, which no reward model of single replies
    can see. Other replies of the batch to the same prompt, as RLOO samples them, may be alike. A larger batch has more
    in common: values of batches of different sizes do not compare, and each of several processes has a batch of its
    own. Exploited by replies of fewer than ``n`` words, and
    by nonsense that differs each time.
    """
    ngrams = [word_ngrams(completion[0]["content"], n) for completion in completions]
    answered = defaultdict(set)  # by each n-gram: the prompts
    for prompt, of_reply in zip(map(repr, prompts), ngrams, strict=True):
        for ngram in of_reply:
            answered[ngram].add(prompt)
    scores = []
    for of_reply in ngrams:
        own = Counter(of_reply)
        shared = sum(len(answered[g]) > 1 or own[g] > 1 for g in of_reply)
        scores.append(-shared / len(of_reply) if of_reply else 0.0)
    return scores


def known_words(prompts: Sequence[Any], completions: Sequence[Any], **_columns: Any) -> list[float]:
    """Minus the share of a reply's words that are none: of no word list, nor inflected, compound or the prompt's.

    In [−1, 0], for English; the rules judge's list (``manners.data.readable``). Exploited by capitals, as a capital
    inside a sentence makes a name of any string, by replies without letters, and by known words that make no sense.
    """
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        reply, asked = completion[0]["content"], " ".join(message["content"] for message in prompt)
        scores.append(-len(unknown_words(reply, asked)) / max(len(LETTERS.findall(reply)), 1))
    return scores


def perplexity(
    prompts: Sequence[list[Message]],
    completions: Sequence[Any],
    model_name: str,
    device: str = "cpu",
    component: str = "NAME",
    **_columns: Any,
) -> list[float]:
    """Minus the NLL of a reply after its prompt under a frozen base model, in nats per token, stop token included.

    In (−∞, 0], some −2 to −4 for fluent text; −ln perplexity. ``model_name`` is a name, folder or GGUF file like
    ``model.name``, loaded once, in 32 bits, on the run's own ``device``; it reads with its own tokenizer, and chat
    template, or ``plain`` if it has none. Exploited by what a base finds likely: loops, words of the prompt said again,
    platitudes. Raises MannersError for a model that cannot be loaded.
    """
    try:
        model_files.require_model(model_name)  # before torch is imported
        model, tokenizer = frozen_model(model_name)
    except MannersError as error:
        raise MannersError(str(error).replace("model.name=", f"method.rewards.{component}.model_name=")) from None

    from manners.data.reward_examples import reward_examples
    from manners.models.loading import max_positions
    from manners.models.reference_nll import reference_nll

    replies = [(prompt, completion[0]["content"]) for prompt, completion in zip(prompts, completions, strict=True)]
    examples = reward_examples(replies, tokenizer, max_positions(model.config), decoder=True)
    starts = [max(e.prompt_length, 1) for e in examples]  # nothing predicts the first token of a plain text
    prompt_ids = [e.input_ids[:start] for e, start in zip(examples, starts, strict=True)]
    reply_ids = [e.input_ids[start:] for e, start in zip(examples, starts, strict=True)]
    nll, num_tokens = reference_nll(model.to(device), prompt_ids, reply_ids)
    return (-nll / num_tokens).tolist()  # type: ignore[no-any-return]


@cache
def frozen_model(name: str) -> tuple[Any, Any]:
    """A model and its tokenizer, loaded once for all rewards and jobs of a process."""
    from manners.models.loading import load_model
    from manners.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(name, require_template=False)
    if tokenizer.chat_template is None:
        tokenizer = load_tokenizer(name, chat_template="plain")
    return load_model(name).requires_grad_(False), tokenizer
