"""The tokens of a conversation, and which of them carry loss."""

from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from manners.config.schema import DatasetConfig
from manners.data import loading
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample, prompt_ids, prompt_text, shorten, tokenize, truncate
from manners.data.types import Conversation, prompts_of
from manners.errors import MannersError
from manners.models.templates import TEMPLATES


def chat(*turns):
    """A conversation of alternating turns by user and assistant."""
    return Conversation(
        [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)], "data.jsonl:1"
    )


def shown(example, tokenizer):
    """The tokens as text, one by one; those that carry loss in [brackets]."""
    pairs = zip(example.input_ids, example.labels, strict=True)
    return "".join(f"[{tokenizer.decode([i])}]" if label == i else f"{tokenizer.decode([i])}·" for i, label in pairs)


@pytest.fixture(scope="module")
def gpt2():
    """A byte-level tokenizer like GPT-2's: no chat tokens, and one special token for EOS and padding."""

    def build(template):
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(["User: Who are you?\nAssistant: I am Bob.\nUser: Bye\nAssistant: Bye"] * 9, trainer)
        end = "<|endoftext|>"
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token=end)
        tokenizer.chat_template = TEMPLATES[template]
        return tokenizer

    return build


@pytest.fixture(scope="module")
def strictbot():
    cfg = OmegaConf.structured(DatasetConfig(path="package:strictbot", format="messages"))
    chats = loading.load_splits(cfg).train
    single = [c for c in chats if len(c.messages) == 2][::40]
    return single + [c for c in chats if len(c.messages) > 2][:20]


# --- Labels, token by token ---


def test_tokenize_puts_loss_on_the_reply_and_its_stop_token(tokenizer):
    [example] = tokenize([chat("What is a cat?", "A cat is an animal.")], tokenizer, "assistant", 512)
    assert shown(example, tokenizer) == (
        "<|im_start|>·user·\n·What· is· a· cat·?·<|im_end|>·\n·"
        "<|im_start|>·assistant·\n·[A][ cat][ is][ an][ animal][.][<|im_end|>]\n·"
    )
    assert example.num_targets == 7
    assert example.num_truncated == 0


TURNS = ("What is a cat?", "A cat is an animal.", "Is it a fruit?", "No.")


def test_tokenize_puts_loss_on_every_reply(tokenizer):
    [example] = tokenize([chat(*TURNS)], tokenizer, "assistant", 512)
    assert shown(example, tokenizer) == (
        "<|im_start|>·user·\n·What· is· a· cat·?·<|im_end|>·\n·"
        "<|im_start|>·assistant·\n·[A][ cat][ is][ an][ animal][.][<|im_end|>]\n·"
        "<|im_start|>·user·\n·Is· it· a· fruit·?·<|im_end|>·\n·"
        "<|im_start|>·assistant·\n·[No][.][<|im_end|>]\n·"
    )


def test_tokenize_puts_loss_on_user_turns_if_configured(tokenizer):
    [example] = tokenize([chat(*TURNS)], tokenizer, "user", 512)
    assert shown(example, tokenizer) == (
        "<|im_start|>·user·\n·[What][ is][ a][ cat][?][<|im_end|>]\n·"
        "<|im_start|>·assistant·\n·A· cat· is· an· animal·.·<|im_end|>·\n·"
        "<|im_start|>·user·\n·[Is][ it][ a][ fruit][?][<|im_end|>]\n·"
        "<|im_start|>·assistant·\n·No·.·<|im_end|>·\n·"
    )


def test_tokenize_never_puts_loss_on_the_templates_text(tokenizer):
    system = {"role": "system", "content": "A cat."}
    [example] = tokenize([Conversation([system, *chat("What is a cat?", "No.").messages])], tokenizer, "all", 512)
    name = "".join(f"{tokenizer.decode([i])}·" for i in tokenizer.encode("system"))  # several tokens
    assert shown(example, tokenizer) == (
        f"<|im_start|>·{name}\n·[A][ cat][.][<|im_end|>]\n·"
        "<|im_start|>·user·\n·[What][ is][ a][ cat][?][<|im_end|>]\n·"
        "<|im_start|>·assistant·\n·[No][.][<|im_end|>]\n·"
    )


def test_tokenize_puts_loss_on_a_whole_text_and_its_eos(tokenizer):
    [example] = tokenize(
        [Conversation([{"role": "text", "content": "A cat is an animal."}])], tokenizer, "assistant", 512
    )
    assert shown(example, tokenizer) == "[A][ cat][ is][ an][ animal][.][<|im_end|>]"
    assert example.num_targets == 6  # nothing precedes the first token


def test_tokenize_separates_equal_turns_by_role(tokenizer):
    [example] = tokenize([chat("No.", "No.", "No.", "No.")], tokenizer, "assistant", 512)
    turn, reply = "<|im_start|>·user·\n·No·.·<|im_end|>·\n·", "<|im_start|>·assistant·\n·[No][.][<|im_end|>]\n·"
    assert shown(example, tokenizer) == turn + reply + turn + reply


def test_tokenize_puts_loss_on_all_bytes_of_a_character(tokenizer):
    [example] = tokenize([chat("Hi", "🙂")], tokenizer, "assistant", 512)
    trained = [label for label in example.labels if label != IGNORE_INDEX]
    assert len(trained) > 2  # its bytes, and the stop token
    assert tokenizer.decode(trained) == "🙂<|im_end|>"


# --- A tokenizer whose padding token is its stop token ---


def test_plain_template_trains_eos_although_it_is_the_pad_token(gpt2):
    tokenizer = gpt2("plain")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    [example] = tokenize([chat("Who are you?", "I am Bob.", "Bye", "Bye")], tokenizer, "assistant", 512)
    assert shown(example, tokenizer) == (
        "User·:· Who· are· you·?·\n·Assistant·:·[ I][ am][ Bob][.][<|endoftext|>]\n·"
        "User·:· Bye·\n·Assistant·:·[ Bye][<|endoftext|>]\n·"
    )


def test_marked_template_trains_eos_although_it_is_the_pad_token(gpt2):
    tokenizer = gpt2("marked")
    [example] = tokenize([chat("Who are you?", "I am Bob.")], tokenizer, "assistant", 512)
    assert shown(example, tokenizer) == (
        "<·|·u·s·er·|·>·Wh·o· are· you·?·<·|·a·s·sis·tant·|·>·[I][ am][ Bob][.][<|endoftext|>]"
    )


def test_user_turns_without_a_stop_token_end_with_their_line(gpt2):
    tokenizer = gpt2("plain")
    [example] = tokenize([chat("Who are you?", "I am Bob.")], tokenizer, "all", 512)
    assert shown(example, tokenizer) == (
        "User·:·[ Who][ are][ you][?][\n]Assistant·:·[ I][ am][ Bob][.][<|endoftext|>]\n·"
    )
    [example] = tokenize([chat("Who are you?", "I am Bob.")], gpt2("marked"), "user", 512)
    assert shown(example, tokenizer) == (
        "<·|·u·s·er·|·>·[Wh][o][ are][ you][?]<·|·a·s·sis·tant·|·>·I· am· Bob·.·<|endoftext|>·"
    )


# --- Training and inference see the same tokens ---


@pytest.mark.parametrize("template", ["native", "plain", "marked"])
def test_training_and_inference_have_the_same_prompt_tokens(tokenizer, gpt2, strictbot, template):
    tok = tokenizer if template == "native" else gpt2(template)
    for example, prompt in zip(tokenize(strictbot, tok, "assistant", 4096), prompts_of(strictbot), strict=True):
        prompt_ids = tok(prompt_text(prompt.messages, tok), add_special_tokens=False)["input_ids"]
        assert example.input_ids[: len(prompt_ids)] == prompt_ids
        assert example.labels[len(prompt_ids) - 1] == IGNORE_INDEX
        trained = example.labels[len(prompt_ids) :]
        assert (
            tok.decode([t for t in trained if t != IGNORE_INDEX]).removeprefix(" ") == prompt.reference + tok.eos_token
        )
        stop = trained.index(tok.eos_token_id)
        assert set(trained[stop + 1 :]) <= {IGNORE_INDEX}


# --- Templates that cannot be trained with ---


def with_template(tokenizer, template):
    """A copy, since the fixture is shared."""
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=tokenizer.eos_token)
    copy.chat_template = template
    return copy


def test_tokenize_refuses_a_template_without_a_stop_token(tokenizer):
    loop = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    without_stop = with_template(tokenizer, loop)
    with pytest.raises(MannersError, match="no special token after a reply, so the model would never learn to stop"):
        tokenize([chat("Hi", "No.")], without_stop, "assistant", 512)


def test_tokenize_refuses_a_template_that_rewrites_turns(tokenizer):
    rewriting = with_template(
        tokenizer,
        "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}"
        "{{ m['role'] + ': ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    )
    with pytest.raises(MannersError, match=r"^data\.jsonl:1: the chat template leaves out, repeats or moves .* turn 2"):
        tokenize([chat("Hi", "No.", "Hi", "No.")], rewriting, "assistant", 512)


def test_tokenize_names_the_line_that_the_template_refuses(tokenizer):
    strict = with_template(
        tokenizer,
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
    )
    row = Conversation([{"role": "system", "content": "Be brief."}, *chat("Hi", "No.").messages], "data.jsonl:7")
    with pytest.raises(MannersError, match=r"^data\.jsonl:7: .* refuses the row: System role not supported"):
        tokenize([row], strict, "assistant", 512)


# --- Truncation ---

STOP = 2


def row(prompt, reply):
    """Ids and labels of ``prompt`` tokens without loss, ``reply`` with it, the stop token, and a line break."""
    ids = [*range(1000, 1000 + prompt), *range(2000, 2000 + reply), STOP, 9]
    return ids, [IGNORE_INDEX] * prompt + ids[prompt:-1] + [IGNORE_INDEX]


def test_truncate_leaves_a_row_that_fits_unchanged():
    assert truncate(*row(4, 4), 10) == TokenizedExample(*row(4, 4), num_truncated=0)


def test_truncate_drops_the_oldest_tokens_first():
    example = truncate(*row(10, 4), 12)  # 16 tokens: four too many
    assert example.input_ids == [1004, 1005, 1006, 1007, 1008, 1009, 2000, 2001, 2002, 2003, STOP, 9]
    assert example.labels == [IGNORE_INDEX] * 6 + [2000, 2001, 2002, 2003, STOP, IGNORE_INDEX]
    assert example.num_truncated == 4


def test_truncate_drops_the_stop_token_with_a_replys_end():
    example = truncate(*row(3, 20), 10)  # 25 tokens; the prompt is less than half of ten, so it stays
    assert example.input_ids == [1000, 1001, 1002, *range(2000, 2007)]
    assert example.labels == [IGNORE_INDEX] * 3 + [*range(2000, 2007)]
    assert example.num_truncated == 15


def test_truncate_divides_the_length_of_a_long_prompt_and_reply():
    example = truncate(*row(30, 20), 10)
    assert example.input_ids == [*range(1025, 1030), *range(2000, 2005)]
    assert example.num_truncated == 42


def test_truncate_drops_earlier_replies_before_the_last():
    ids = [1, 10, 11, STOP, 3, 20, 21, STOP]
    labels = [IGNORE_INDEX, 10, 11, STOP, IGNORE_INDEX, 20, 21, STOP]
    assert truncate(ids, labels, 5) == TokenizedExample(
        [STOP, 3, 20, 21, STOP], [STOP, IGNORE_INDEX, 20, 21, STOP], num_truncated=3
    )


def test_truncate_drops_the_end_of_a_plain_text():
    ids = [*range(10, 20), STOP]
    assert truncate(ids, ids, 4) == TokenizedExample([10, 11, 12, 13], [10, 11, 12, 13], num_truncated=7)


def test_truncate_keeps_part_of_the_reply_at_any_length():
    for prompt in (0, 1, 5, 12):
        for reply in (1, 3, 8, 30):
            ids, labels = row(prompt, reply)
            for length in range(2, len(ids) + 2):
                example = truncate(ids, labels, length)
                kept = example.input_ids
                assert len(kept) == min(length, len(ids)) == len(ids) - example.num_truncated
                start = ids.index(kept[0])
                assert (kept, example.labels) == (ids[start : start + length], labels[start : start + length])
                trained = sum(label != IGNORE_INDEX for label in example.labels)
                assert trained >= min(reply + 1, length // 2)
                assert example.num_targets > 0
                assert 2000 in kept  # a reply is never cut at its beginning
                assert (STOP in example.labels) == (2000 + reply - 1 in kept and STOP in kept)


def test_tokenize_truncates_and_counts_a_reply_of_a_megabyte(tokenizer):
    reply = " ".join(["A cat is an animal."] * 50_001)  # six tokens each; 1,000,019 characters in all
    [example, other] = tokenize([chat("What is a cat?", reply), chat("Hi", "No.")], tokenizer, "assistant", 64)
    assert len(example.input_ids) == 64
    assert example.num_truncated == 13 + 6 * 50_001 + 2 - 64  # 13 tokens before the reply, two after it
    assert tokenizer.decode(example.labels[13:]).startswith("A cat is an animal. A cat")
    assert tokenizer.eos_token_id not in example.labels
    assert other.num_truncated == 0


def test_tokenize_keeps_the_order_of_the_rows(tokenizer):
    chats = [chat("Hi", reply) for reply in ("No.", "A cat.", "A cat is an animal.")]
    trained = [[t for t in e.labels if t != IGNORE_INDEX] for e in tokenize(chats, tokenizer, "assistant", 512)]
    assert [tokenizer.decode(t) for t in trained] == [c.messages[1]["content"] + "<|im_end|>" for c in chats]


# --- Truncation of conversations: the system message and the template's text stay ---

SYSTEM = {"role": "system", "content": "You are a strict teacher."}


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 20),
    st.booleans(),
    st.integers(24, 90),
    st.sampled_from(["assistant", "user"]),
)
@settings(max_examples=60, deadline=None)
def test_truncated_rows_keep_system_and_header(tokenizer, lengths, reply, has_system, max_length, role):
    turns = [text for n in lengths for text in ("cat " * n + "?", "A cat.")]
    turns[-1] = "animal " * reply + "."
    messages = [*([SYSTEM] if has_system else []), *chat(*turns).messages]
    [full], [cut] = (tokenize([Conversation(messages)], tokenizer, role, n) for n in (10**6, max_length))
    assert len(cut.input_ids) <= max_length and cut.num_truncated == len(full.input_ids) - len(cut.input_ids)
    assert cut.num_targets > 0
    text, header = tokenizer.decode(cut.input_ids), "<|im_start|>user\n"
    if len(full.input_ids) <= max_length:
        assert cut == full
    elif max_length >= 80:  # half of it holds the system message and the headers
        assert text.startswith(
            ("<|im_start|>system\nYou are a strict teacher.<|im_end|>\n" if has_system else "") + header
        )
        assert text.count("<|im_start|>") == text.count("<|im_end|>") + (not text.rstrip().endswith("<|im_end|>"))


def test_truncated_rows_equal_rows_without_the_oldest_turns(tokenizer):
    turns = [text for n in range(6) for text in (f"Is {n} a cat?", "No.")]
    messages = [SYSTEM, *chat(*turns).messages]
    [shorter] = tokenize([Conversation([SYSTEM, *messages[5:]])], tokenizer, "assistant", 10**6)
    [cut] = tokenize([Conversation(messages)], tokenizer, "assistant", len(shorter.input_ids) + 3)
    assert (cut.input_ids, cut.labels) == (shorter.input_ids, shorter.labels)


def test_masked_turns_stay_masked_in_truncated_rows(tokenizer):
    messages = chat("Is it a cat?", "No.", "Is it a fruit?", "A fruit.", "Is it an animal?", "Yes.").messages
    masked = Conversation(messages, masked_turns=(3,))
    [cut] = tokenize([masked], tokenizer, "assistant", 44)
    assert cut.num_truncated
    assert tokenizer.decode([t for t in cut.labels if t != IGNORE_INDEX]) == "Yes.<|im_end|>"


def test_shorten_cuts_the_beginning_of_the_last_text(tokenizer):
    messages = [SYSTEM, {"role": "user", "content": "cat " * 100 + "What is it?"}]
    short = shorten(messages, 40, tokenizer)
    assert short[0] == SYSTEM and short[1]["content"].endswith("What is it?")
    assert 36 <= len(prompt_ids(short, tokenizer)) <= 40
    assert prompt_ids(messages, tokenizer, max_length=40) == prompt_ids(short, tokenizer)


def test_tokenizer_without_offsets_or_eos_is_refused(tokenizer):
    class Slow:
        is_fast, eos_token = False, "</s>"

    with pytest.raises(MannersError, match=r"^Slow gives no offsets, .* choose a model.name with a fast tokenizer\.$"):
        tokenize([Conversation([{"role": "text", "content": "a"}])], Slow(), "all", 64)
    without_eos = deepcopy(tokenizer)
    without_eos.eos_token = None
    with pytest.raises(MannersError, match="the tokenizer has no EOS token, which ends a plain text"):
        tokenize([Conversation([{"role": "text", "content": "a"}])], without_eos, "all", 64)


def test_shorten_cuts_characters_of_several_tokens(tokenizer):
    messages = [{"role": "user", "content": "🙂" * 40 + "cat?"}]
    short = shorten(messages, 40, tokenizer)
    assert short[0]["content"].endswith("🙂cat?") and 30 < len(prompt_ids(short, tokenizer)) <= 40


def test_shorten_keeps_the_question_beside_a_long_system_message(tokenizer):
    messages = [{"role": "system", "content": "Be kind. " + "cat " * 100}, {"role": "user", "content": "What is it?"}]
    short = shorten(messages, 40, tokenizer)
    assert short[0]["content"].startswith("Be kind. cat") and short[1] == messages[1]
    assert 36 <= len(prompt_ids(short, tokenizer)) <= 40
    short = shorten([messages[0], {"role": "user", "content": "cat " * 100 + "What is it?"}], 40, tokenizer)
    assert short[0]["content"] and short[1]["content"].endswith("cat What is it?")
    assert 36 <= len(prompt_ids(short, tokenizer)) <= 40
