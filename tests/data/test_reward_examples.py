"""The inputs of a reward model: the rendered conversation for decoders, a pair of segments for encoders."""

import pytest
import torch
from transformers import BertTokenizer

from manners.data.reward_examples import (
    RewardExample,
    collate_examples,
    pair_examples,
    reward_examples,
    scored_examples,
)
from manners.data.tokenize import prompt_text
from manners.data.types import PreferencePair, ScoredReply

PROMPT = [{"role": "user", "content": "What is a cat?"}]
TURNS = [*PROMPT, {"role": "assistant", "content": "An animal."}, {"role": "user", "content": "Is a lion an animal?"}]
REPLY = "A lion is an animal."
STOP = "<|im_end|>"


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    """BERT's tokenizer, with a vocabulary of words, word pieces and single letters."""
    special = "[PAD] [UNK] [CLS] [SEP] [MASK]"
    words = "the cat eats fish and dogs bark at night yes no who what is a an animal lion here . ? !"
    pieces = "un ##believ ##able play ##ing ##s " + " ".join(f"{c} ##{c}" for c in "bcdefghijklmnopqrstuvwxyz")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text(f"{special} {words} {pieces}".replace(" ", "\n"))
    return BertTokenizer.from_pretrained(folder)


def one(messages, reply, tokenizer, max_length, decoder):
    [example] = reward_examples([(messages, reply)], tokenizer, max_length, decoder)
    return example


def tokens(example, tokenizer):
    return " ".join(tokenizer.convert_ids_to_tokens(example.input_ids))


# --- Decoders ---


@pytest.mark.parametrize("messages", [PROMPT, TURNS])
def test_decoder_example_is_prompt_reply_and_stop_token(tokenizer, messages):
    example = one(messages, REPLY, tokenizer, 512, decoder=True)
    assert tokenizer.decode(example.input_ids) == prompt_text(messages, tokenizer) + REPLY + STOP
    assert example.token_type_ids is None and example.num_truncated == 0


def test_decoder_example_of_an_empty_reply_is_its_stop_token(tokenizer):
    example = one(PROMPT, "", tokenizer, 512, decoder=True)
    assert tokenizer.decode(example.input_ids) == prompt_text(PROMPT, tokenizer) + STOP


@pytest.mark.parametrize(("max_length", "kept"), [(30, "Is a lion an animal?"), (18, " an animal?")])
def test_decoder_truncation_keeps_the_templates_text(tokenizer, max_length, kept):
    full, example = (one(TURNS, REPLY, tokenizer, length, decoder=True) for length in (512, max_length))
    prompt = prompt_text([{"role": "user", "content": kept}], tokenizer)
    assert tokenizer.decode(example.input_ids) == prompt + REPLY + STOP
    assert example.num_truncated == len(full.input_ids) - len(example.input_ids)


def test_decoder_truncation_keeps_the_reply_where_no_header_fits(tokenizer):
    example = one(TURNS, REPLY, tokenizer, 12, decoder=True)
    assert len(example.input_ids) == 12
    assert tokenizer.decode(example.input_ids).endswith("assistant\n" + REPLY + STOP)


def test_decoder_truncation_cuts_only_a_reply_over_the_limit(tokenizer):
    reply = tokenizer(REPLY, add_special_tokens=False)["input_ids"]
    assert one(TURNS, REPLY, tokenizer, len(reply) + 1, decoder=True).input_ids == [*reply, tokenizer.eos_token_id]
    assert one(TURNS, REPLY, tokenizer, len(reply) - 2, decoder=True).input_ids == reply[:-2]


def test_decoder_example_of_plain_text_has_no_prompt(tokenizer):
    example = one([], REPLY, tokenizer, 512, decoder=True)
    assert tokenizer.decode(example.input_ids) == REPLY + STOP


# --- Encoders ---


def test_encoder_reads_separators_in_the_text_as_text(wordpiece):
    example = one([{"role": "user", "content": "Who [SEP] eats?"}], "The [CLS] cat.", wordpiece, 512, decoder=False)
    assert tokens(example, wordpiece).count("[SEP]") == 2 and tokens(example, wordpiece).count("[CLS]") == 1
    assert example.token_type_ids.index(1) == example.input_ids.index(wordpiece.sep_token_id) + 1


def test_encoder_example_is_a_pair_of_segments(wordpiece):
    example = one([{"role": "user", "content": "Who eats fish?"}], "The cat.", wordpiece, 512, decoder=False)
    assert tokens(example, wordpiece) == "[CLS] who eats fish ? [SEP] the cat . [SEP]"
    assert example.token_type_ids == [0] * 6 + [1] * 4
    assert example.num_truncated == 0


def test_encoder_example_has_all_turns(wordpiece):
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The cat."},
            {"role": "user", "content": "What?"}]  # fmt: skip
    example = one(turns, "Fish!", wordpiece, 512, decoder=False)
    assert tokens(example, wordpiece) == "[CLS] who ? the cat . what ? [SEP] fish ! [SEP]"


def test_encoder_example_of_an_empty_reply_keeps_its_segment(wordpiece):
    example = one([{"role": "user", "content": "Who?"}], "", wordpiece, 512, decoder=False)
    assert tokens(example, wordpiece) == "[CLS] who ? [SEP] [SEP]"
    assert example.token_type_ids == [0, 0, 0, 0, 1]


def test_encoder_example_of_plain_text_is_one_segment(wordpiece):
    example = one([], "The cat eats.", wordpiece, 512, decoder=False)
    assert tokens(example, wordpiece) == "[CLS] the cat eats . [SEP]"
    assert example.token_type_ids == [0] * 6
    truncated = one([], "The cat eats.", wordpiece, 4, decoder=False)
    assert tokens(truncated, wordpiece) == "[CLS] the cat [SEP]"
    assert truncated.num_truncated == 2


@pytest.mark.parametrize("max_length", [12, 11, 10, 9, 8, 7])
def test_encoder_truncation_drops_the_oldest_prompt_tokens(wordpiece, max_length):
    """Wherever the cut falls, also within a word, whose remaining pieces tokenized alone would be other tokens."""
    content = "the cat unbelievables playing"  # the cat un ##believ ##able ##s play ##ing
    example = one([{"role": "user", "content": content}], "yes no !", wordpiece, max_length, decoder=False)
    max_prompt = max_length - 6
    kept = " ".join(["the", "cat", "un", "##believ", "##able", "##s", "play", "##ing"][8 - max_prompt :])
    assert tokens(example, wordpiece) == f"[CLS] {kept} [SEP] yes no ! [SEP]"
    assert example.token_type_ids == [0] * (max_prompt + 2) + [1] * 4
    assert example.num_truncated == 8 - max_prompt


@pytest.mark.parametrize("max_length, kept", [(6, "yes no !"), (5, "yes no"), (4, "yes")])
def test_encoder_truncation_cuts_only_a_reply_over_the_limit(wordpiece, max_length, kept):
    example = one([{"role": "user", "content": "the cat"}], "yes no !", wordpiece, max_length, decoder=False)
    assert tokens(example, wordpiece) == f"[CLS] [SEP] {kept} [SEP]"
    assert example.token_type_ids == [0, 0] + [1] * (len(kept.split()) + 1)
    assert example.num_truncated == 2 + 6 - max_length


def test_encoder_example_never_exceeds_berts_512_positions(wordpiece):
    side = wordpiece.truncation_side
    long = [{"role": "user", "content": "unbelievable dogs play. " * 200}]
    replies = [(long, "yes"), (long, "no " * 600), ([], "cat " * 700), ([{"role": "user", "content": "who?"}], "yes")]
    examples = reward_examples(replies, wordpiece, 512, decoder=False)
    assert [len(e.input_ids) for e in examples] == [512, 512, 512, 6]
    assert all(len(e.token_type_ids) == len(e.input_ids) for e in examples)
    assert all(e.input_ids[-1] == wordpiece.sep_token_id for e in examples)
    assert wordpiece.truncation_side == side


# --- Rows and batches ---


def test_scored_examples_have_standardized_targets(tokenizer):
    rows = [ScoredReply(PROMPT, "Yes.", 5.0), ScoredReply(PROMPT, "No.", 1.0)]
    examples = scored_examples(rows, tokenizer, 512, True, lambda score: (score - 3.0) / 4.0)
    assert [e.target for e in examples] == [0.5, -0.5]
    assert [e.input_ids for e in examples] == [one(PROMPT, r, tokenizer, 512, True).input_ids for r in ("Yes.", "No.")]


def test_pair_examples_hold_both_replies_and_the_margin(tokenizer):
    [pair] = pair_examples([PreferencePair(TURNS, "Yes.", REPLY, 0.7)], tokenizer, 20, True)
    chosen, rejected = (one(TURNS, r, tokenizer, 20, True) for r in ("Yes.", REPLY))
    assert (pair.input_ids, pair.rejected.input_ids) == (chosen.input_ids, rejected.input_ids)
    assert pair.margin == 0.7
    assert pair.num_truncated == chosen.num_truncated + rejected.num_truncated > 0
    assert RewardExample([1, 2], rejected=RewardExample([1, 2, 3])).length == 3


def test_reward_examples_of_no_replies_is_empty(tokenizer):
    assert reward_examples([], tokenizer, 512, True) == []


def test_collate_examples_of_scored_replies():
    batch = collate_examples([RewardExample([5, 6, 7], target=0.5), RewardExample([8], target=-1.0)], pad=5)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 5, 5]]
    # The mask is from the lengths, since the padding token occurs in texts.
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["targets"].tolist() == [0.5, -1.0]
    assert int(batch["tokens"]) == 4
    assert not {"token_type_ids", "margins"} & set(batch)


def test_collate_examples_puts_rejected_after_chosen():
    pairs = [
        RewardExample([1, 2], [0, 1], rejected=RewardExample([1, 3, 4], [0, 1, 1]), margin=0.5),
        RewardExample([5], [0], rejected=RewardExample([6], [0]), margin=2.0),
    ]
    batch = collate_examples(pairs, pad=0)
    assert batch["input_ids"].tolist() == [[1, 2, 0], [5, 0, 0], [1, 3, 4], [6, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert torch.equal(batch["margins"], torch.tensor([0.5, 2.0]))
    assert "targets" not in batch
