"""What a reward model reads: decoders the conversation as its template has it, encoders a pair of segments."""

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

ASKED = [{"role": "user", "content": "What is a cat?"}]
TALK = [*ASKED, {"role": "assistant", "content": "An animal."}, {"role": "user", "content": "Is a lion an animal?"}]
REPLY = "A lion is an animal."
STOP = "<|im_end|>"


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    """BERT's tokenizer, with whole words, pieces, and all letters alone."""
    marks = "[PAD] [UNK] [CLS] [SEP] [MASK]"
    whole = "the cat eats fish and dogs bark at night yes no who what is a an animal lion here . ? !"
    pieces = "un ##believ ##able play ##ing ##s " + " ".join(f"{c} ##{c}" for c in "bcdefghijklmnopqrstuvwxyz")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text(f"{marks} {whole} {pieces}".replace(" ", "\n"))
    return BertTokenizer.from_pretrained(folder)


def one(messages, reply, tokenizer, max_length, decoder):
    [passage] = reward_examples([(messages, reply)], tokenizer, max_length, decoder)
    return passage


def words(passage, tokenizer):
    return " ".join(tokenizer.convert_ids_to_tokens(passage.input_ids))


# --- Decoders ---


@pytest.mark.parametrize("messages", [ASKED, TALK])
def test_a_decoder_reads_the_templates_prompt_the_reply_and_its_stop_token(tokenizer, messages):
    passage = one(messages, REPLY, tokenizer, 512, decoder=True)
    assert tokenizer.decode(passage.input_ids) == prompt_text(messages, tokenizer) + REPLY + STOP
    assert passage.segments is None and passage.num_truncated == 0


def test_an_empty_reply_is_its_stop_token(tokenizer):
    passage = one(ASKED, "", tokenizer, 512, decoder=True)
    assert tokenizer.decode(passage.input_ids) == prompt_text(ASKED, tokenizer) + STOP


@pytest.mark.parametrize("max_length", [30, 20, 12])
def test_a_decoder_loses_the_oldest_of_the_prompt_never_the_reply(tokenizer, max_length):
    whole = one(TALK, REPLY, tokenizer, 512, decoder=True).input_ids
    passage = one(TALK, REPLY, tokenizer, max_length, decoder=True)
    assert passage.input_ids == whole[-max_length:]
    assert passage.num_truncated == len(whole) - max_length
    assert tokenizer.decode(passage.input_ids).endswith(REPLY + STOP)


def test_only_a_reply_longer_than_the_limit_loses_its_end(tokenizer):
    reply = tokenizer(REPLY, add_special_tokens=False)["input_ids"]
    assert one(TALK, REPLY, tokenizer, len(reply) + 1, decoder=True).input_ids == [*reply, tokenizer.eos_token_id]
    assert one(TALK, REPLY, tokenizer, len(reply) - 2, decoder=True).input_ids == reply[:-2]


def test_plain_text_stands_alone(tokenizer):
    passage = one([], REPLY, tokenizer, 512, decoder=True)
    assert tokenizer.decode(passage.input_ids) == REPLY + STOP


# --- Encoders ---


def test_an_encoder_reads_a_pair_of_segments(wordpiece):
    passage = one([{"role": "user", "content": "Who eats fish?"}], "The cat.", wordpiece, 512, decoder=False)
    assert words(passage, wordpiece) == "[CLS] who eats fish ? [SEP] the cat . [SEP]"
    assert passage.segments == [0] * 6 + [1] * 4
    assert passage.num_truncated == 0


def test_an_encoder_reads_all_that_was_said(wordpiece):
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The cat."},
            {"role": "user", "content": "What?"}]  # fmt: skip
    passage = one(talk, "Fish!", wordpiece, 512, decoder=False)
    assert words(passage, wordpiece) == "[CLS] who ? the cat . what ? [SEP] fish ! [SEP]"


def test_an_empty_reply_keeps_its_place(wordpiece):
    passage = one([{"role": "user", "content": "Who?"}], "", wordpiece, 512, decoder=False)
    assert words(passage, wordpiece) == "[CLS] who ? [SEP] [SEP]"
    assert passage.segments == [0, 0, 0, 0, 1]


def test_plain_text_is_one_segment(wordpiece):
    passage = one([], "The cat eats.", wordpiece, 512, decoder=False)
    assert words(passage, wordpiece) == "[CLS] the cat eats . [SEP]"
    assert passage.segments == [0] * 6
    cut = one([], "The cat eats.", wordpiece, 4, decoder=False)
    assert words(cut, wordpiece) == "[CLS] the cat [SEP]"
    assert cut.cut == 2


@pytest.mark.parametrize("max_length", [12, 11, 10, 9, 8, 7])
def test_an_encoder_loses_the_oldest_of_the_prompt_never_the_reply(wordpiece, max_length):
    """Wherever the cut falls: within a word, too, whose pieces read alone would be other tokens."""
    said = "the cat unbelievables playing"  # the cat un ##believ ##able ##s play ##ing
    passage = one([{"role": "user", "content": said}], "yes no !", wordpiece, max_length, decoder=False)
    room = max_length - 6
    kept = " ".join(["the", "cat", "un", "##believ", "##able", "##s", "play", "##ing"][8 - room :])
    assert words(passage, wordpiece) == f"[CLS] {kept} [SEP] yes no ! [SEP]"
    assert passage.segments == [0] * (room + 2) + [1] * 4
    assert passage.num_truncated == 8 - room


@pytest.mark.parametrize("max_length, kept", [(6, "yes no !"), (5, "yes no"), (4, "yes")])
def test_only_a_reply_longer_than_an_encoders_limit_loses_its_end(wordpiece, max_length, kept):
    passage = one([{"role": "user", "content": "the cat"}], "yes no !", wordpiece, max_length, decoder=False)
    assert words(passage, wordpiece) == f"[CLS] [SEP] {kept} [SEP]"
    assert passage.segments == [0, 0] + [1] * (len(kept.split()) + 1)
    assert passage.num_truncated == 2 + 6 - max_length


def test_a_passage_of_bert_is_never_longer_than_its_512_positions(wordpiece):
    side = wordpiece.truncation_side
    long = [{"role": "user", "content": "unbelievable dogs play. " * 200}]
    replies = [(long, "yes"), (long, "no " * 600), ([], "cat " * 700), ([{"role": "user", "content": "who?"}], "yes")]
    read = reward_examples(replies, wordpiece, 512, decoder=False)
    assert [len(p.input_ids) for p in read] == [512, 512, 512, 6]
    assert all(len(p.segments) == len(p.input_ids) for p in read)
    assert all(p.input_ids[-1] == wordpiece.sep_token_id for p in read)
    assert wordpiece.truncation_side == side


# --- Rows and batches ---


def test_scores_are_standardised(tokenizer):
    rows = [ScoredReply(ASKED, "Yes.", 5.0), ScoredReply(ASKED, "No.", 1.0)]
    read = scored_examples(rows, tokenizer, 512, True, mean=3.0, scale=4.0)
    assert [p.target for p in read] == [0.5, -0.5]
    assert [p.input_ids for p in read] == [one(ASKED, r, tokenizer, 512, True).input_ids for r in ("Yes.", "No.")]


def test_pairs_hold_both_replies_and_the_margin(tokenizer):
    [pair] = pair_examples([PreferencePair(TALK, "Yes.", REPLY, 0.7)], tokenizer, 20, True)
    chosen, rejected = (one(TALK, r, tokenizer, 20, True) for r in ("Yes.", REPLY))
    assert (pair.input_ids, pair.rejected.input_ids) == (chosen.input_ids, rejected.input_ids)
    assert pair.margin == 0.7
    assert pair.cut == chosen.cut + rejected.cut > 0
    assert RewardExample([1, 2], rejected=RewardExample([1, 2, 3])).length == 3


def test_no_replies_are_no_passages(tokenizer):
    assert reward_examples([], tokenizer, 512, True) == []


def test_a_batch_of_scored_replies():
    batch = collate_examples([RewardExample([5, 6, 7], target=0.5), RewardExample([8], target=-1.0)], pad=5)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 5, 5]]
    assert batch["mask"].tolist() == [[1, 1, 1], [1, 0, 0]]  # by lengths, for the padding token occurs in text
    assert batch["targets"].tolist() == [0.5, -1.0]
    assert int(batch["tokens"]) == 4
    assert not {"segments", "margins"} & set(batch)


def test_a_batch_of_pairs_holds_the_chosen_and_then_the_rejected():
    pairs = [
        RewardExample([1, 2], [0, 1], rejected=RewardExample([1, 3, 4], [0, 1, 1]), margin=0.5),
        RewardExample([5], [0], rejected=RewardExample([6], [0]), margin=2.0),
    ]
    batch = collate_examples(pairs, pad=0)
    assert batch["input_ids"].tolist() == [[1, 2, 0], [5, 0, 0], [1, 3, 4], [6, 0, 0]]
    assert batch["segments"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert torch.equal(batch["margins"], torch.tensor([0.5, 2.0]))
    assert "targets" not in batch
