"""Every model and dataset of conf/ that is on the hub, by its real name, from a cache as a download leaves it."""

import subprocess
import sys
from itertools import groupby

import pytest
import torch
import yaml

from manners.data.loading import load_splits
from manners.data.reward_examples import reward_examples
from manners.data.tokenize import IGNORE_INDEX, prompt_text, tokenize
from manners.data.types import Conversation
from manners.errors import MannersError
from manners.evaluation.generate import generate_texts
from manners.models import loading, lora, reward_model
from manners.runtime.paths import CONF
from tests import hub_cache, hub_models, hub_rows
from tests.configs import compose

CHOICES = {
    group: {file.stem: yaml.safe_load(file.read_text()) or {} for file in sorted((CONF / group).glob("*.yaml"))}
    for group in ("model", "dataset")
}
MODELS = {name: chosen for name, chosen in CHOICES["model"].items() if chosen["name"] != "tiny"}
PATHS = {name: chosen.get("path", "") for name, chosen in CHOICES["dataset"].items()}
DATASETS = {name: path for name, path in PATHS.items() if "/" in path and not path.startswith("package:")}
DECODERS = [name for name, chosen in MODELS.items() if chosen.get("decoder", True)]
ENCODERS = [name for name in MODELS if name not in DECODERS]
CHAT = Conversation([
    {"role": "user", "content": "Hello?\n  Anybody?"},
    {"role": "assistant", "content": "Nobody."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is late."},
])  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    hub_cache.lay_out(home, *hub_models.PUBLISHED, *hub_rows.SPLITS)
    with pytest.MonkeyPatch.context() as patch:
        hub_cache.point_at(home, patch)
        yield home


def test_none_is_left_out():
    assert {chosen["name"] for chosen in MODELS.values()} == hub_models.PUBLISHED.keys()
    assert set(DATASETS.values()) == hub_rows.SPLITS.keys()


# --- Models ---


def tokenizer_of(name):
    chosen = MODELS[name]
    return loading.load_tokenizer(
        chosen["name"], chat_template=chosen.get("chat_template", "auto"), chats=chosen.get("decoder", True)
    )


CHATML = """<|im_start|>system
{system}<|im_end|>
<|im_start|>user
Hello?
  Anybody?<|im_end|>
<|im_start|>assistant
Nobody.<|im_end|>
<|im_start|>user
Why?<|im_end|>
<|im_start|>assistant
"""
PLAIN = "User: Hello?\n  Anybody?\nAssistant: Nobody.<|endoftext|>\nUser: Why?\nAssistant:"
ZEPHYR = "<|user|>\nHello?\n  Anybody?</s>\n<|assistant|>\nNobody.</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n"
# What the model is given to answer, what carries loss after it, at which tokens it stops, and what fills rows.
EXPECTED = {
    "qwen0.5b": (
        CHATML.format(system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        "It is late.<|im_end|>",
        {"<|im_end|>", "<|endoftext|>"},
        "<|endoftext|>",
    ),
    "qwen7b": (
        CHATML.format(system="You are a helpful assistant."),
        "It is late.<|im_end|>",
        {"<|im_end|>", "<|endoftext|>"},
        "<|endoftext|>",
    ),
    "gpt2": (PLAIN, " It is late.<|endoftext|>", {"<|endoftext|>"}, "<|endoftext|>"),
    "pythia160m": (PLAIN, " It is late.<|endoftext|>", {"<|endoftext|>"}, "<|padding|>"),
    "pythia410m": (PLAIN, " It is late.<|endoftext|>", {"<|endoftext|>"}, "<|padding|>"),
    "tinyllama": (ZEPHYR, "It is late.</s>", {"</s>"}, "</s>"),
}
CLASSES = {"qwen": "Qwen2", "gpt2": "GPT2", "pythia": "GPTNeoX", "tinyllama": "Llama", "bert": "Bert", "minilm": "Bert"}


def true_class(name):
    return next(kind for start, kind in CLASSES.items() if name.startswith(start))


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_loads_as_what_it_is(name):
    model, tokenizer = loading.load_model(MODELS[name]["name"]), tokenizer_of(name)
    assert type(model).__name__ in (f"{true_class(name)}ForCausalLM", f"{true_class(name)}LMHeadModel")
    rows = model.get_input_embeddings().num_embeddings
    lora.resize_embeddings(model, tokenizer)  # Qwen's and Pythia's have more rows than tokens: none are added or taken
    assert model.get_input_embeddings().num_embeddings == rows == model.config.vocab_size >= len(tokenizer)


@pytest.mark.parametrize("name", DECODERS)
def test_a_reply_and_its_stop_token_carry_loss(name):
    asked, answered, _, _ = EXPECTED[name]
    tokenizer = tokenizer_of(name)
    assert prompt_text(CHAT.messages[:3], tokenizer) == asked
    [example] = tokenize([CHAT], tokenizer, "assistant", 512)
    assert tokenizer.decode(example.input_ids) == asked + answered + "\n"
    runs = groupby(example.labels, key=lambda label: label != IGNORE_INDEX)
    learned = [tokenizer.decode(list(run)) for carries, run in runs if carries]
    assert learned == [answered.replace("It is late.", "Nobody."), answered]


@pytest.mark.parametrize("name", DECODERS)
def test_a_reply_ends_where_training_ends_it(name):
    """A model that says the stop token and nothing else has said nothing, and has ended."""
    _, answered, stops, pad = EXPECTED[name]
    model, tokenizer = loading.load_model(MODELS[name]["name"]), tokenizer_of(name)
    assert set(tokenizer.convert_ids_to_tokens(loading.stop_token_ids(model, tokenizer))) == stops
    assert tokenizer.pad_token == pad
    [stop] = [token for token in stops if answered.endswith(token)]
    ask = lambda: generate_texts(model, tokenizer, [CHAT.messages[:3]], max_new_tokens=3)[0]  # noqa: E731
    assert ask().tokens == 3 and not ask().ended  # random weights ramble
    end = torch.tensor([tokenizer.convert_tokens_to_ids(stop)])
    model.get_output_embeddings().register_forward_hook(lambda *args: args[-1].index_fill(-1, end, 1e4))
    assert (ask().text, ask().ended, ask().tokens) == ("", True, 0)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_reads_prompt_and_reply_as_a_pair(name):
    tokenizer = tokenizer_of(name)
    network = reward_model.load_reward_base(MODELS[name]["name"], tokenizer)
    assert type(network).__name__ == f"{true_class(name)}ForSequenceClassification"
    asked = "why " * 200  # MiniLM's tokenizer was saved while it cut all texts to 128 tokens, and filled them up to it
    [short, long] = reward_examples([([{"role": "user", "content": text}], "Late.") for text in ("Why?", asked)],
                                 tokenizer, 512, decoder=False)  # fmt: skip
    words = tokenizer.convert_ids_to_tokens(short.input_ids)
    assert (words[0], words[-1], words.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert [short.input_ids[0], short.input_ids[-1]] == [101, 102] and tokenizer.pad_token_id == 0
    middle = words.index("[SEP]") + 1
    assert short.segments == [0] * middle + [1] * (len(words) - middle)
    assert tokenizer.decode(short.input_ids, skip_special_tokens=True) == "why? late."
    assert len(long.input_ids) > 200 and 0 not in long.input_ids


def test_a_model_that_is_not_in_the_cache_says_how_to_get_it():
    with pytest.raises(MannersError) as caught:
        loading.load_model("EleutherAI/pythia-70m")
    assert "model 'EleutherAI/pythia-70m' is not in its local cache" in str(caught.value)
    assert "hf download EleutherAI/pythia-70m --local-dir FOLDER" in str(caught.value)
    assert "model.name=FOLDER" in str(caught.value)


# --- Datasets ---


def rows_of(name, *more):
    splits = load_splits(compose(f"dataset={name}", *more).dataset)
    return splits, [len(getattr(splits, split)) for split in ("train", "validation", "test")]


def said(chat):
    """Who speaks, by the first letter, and what the last turn says."""
    return "".join(m["role"][0] for m in chat.messages), chat.messages[-1]["content"]


def test_oasst1_is_read_tree_by_tree():
    """Each English tree has two conversations for the assistant; what else it has is counted."""
    splits, sizes = rows_of("oasst1")
    assert sizes == [2 * 30, 2 * 6, 0]
    assert [said(chat) for chat in splits.train[:2]] == [
        ("uaua", "Then it keeps for 4 days."),
        ("ua", "Nobody knows. Most bread keeps for 2 days there."),
    ]
    assert [chat.masked_turns for chat in splits.train[:2]] == [(), ()]
    assert splits.validation[0].messages[0]["content"] == "How long does honey keep on shelf 30?"
    assert splits.notes == [
        "36 messages: deleted",
        "36 messages: not reviewed well",
        "12 messages: below one that was left out",
        "2 messages: language de",
    ]


def test_oasst1_teaches_its_users_and_when_they_stop():
    splits, sizes = rows_of("oasst1_user")
    assert sizes == [30, 6, 0]
    assert said(splits.train[0]) == ("uauau", "<|endoftext|>")


def test_ultrachat_is_read_from_the_splits_for_sft():
    splits, sizes = rows_of("ultrachat")
    assert sizes == [40, 0, 10]
    assert said(splits.train[39]) == ("uaua", "Then it keeps for 82 days.")
    assert said(splits.test[0]) == ("uaua", "Then it keeps for 84 days.")


def test_ultrachats_other_splits_may_be_named():
    splits, sizes = rows_of("ultrachat", "dataset.splits=[train_gen]")
    assert sum(sizes) == 5
    assert splits.train[0].source == "HuggingFaceH4/ultrachat_200k train_gen[0]"


def test_guanaco_is_told_by_its_marks():
    splits, sizes = rows_of("guanaco")
    assert sizes == [21, 0, 6]
    assert said(splits.train[0]) == ("uaua", "Then it keeps for 4 days.")
    assert said(splits.train[20]) == ("uau", "And if the salad stands in the cold?")


def test_dolly_has_one_split_which_is_dealt_by_a_hash():
    splits, sizes = rows_of("dolly")
    assert sum(sizes) == 60 and min(sizes) > 0
    chats = {chat.source: said(chat)[0] + chat.messages[0]["content"] for chat in splits.train}
    assert chats["databricks/databricks-dolly-15k train[2]"] == "uaAnd if the tea stands in the cold?"


@pytest.mark.parametrize(
    ("name", "asked", "near"), [("ultrachat", "train_stf", "train_sft"), ("oasst1", "validate", "validation")]
)
def test_a_split_that_is_not_there_is_refused_with_the_nearest(name, asked, near):
    with pytest.raises(MannersError) as caught:
        rows_of(name, f"dataset.splits=[{asked}]")
    assert str(caught.value) == f"dataset.splits: {DATASETS[name]} has no {asked}. Did you mean '{near}'?"


def test_a_dataset_that_is_not_in_the_cache_says_how_to_get_it():
    with pytest.raises(MannersError) as caught:
        rows_of("jsonl", "dataset.path=OpenAssistant/oasst2")
    assert "dataset 'OpenAssistant/oasst2' is not in its local cache" in str(caught.value)
    assert "hf download --repo-type dataset OpenAssistant/oasst2 --local-dir FOLDER" in str(caught.value)
    assert "dataset.path=FOLDER" in str(caught.value)


def test_a_process_of_its_own_finds_a_dataset_and_a_model_by_hf_home_alone():
    """The hub's libraries settle where their cache is when they are imported."""
    code = """
from manners import hub
from manners.models.base import load, load_tokenizer
name = "Qwen/Qwen2.5-0.5B-Instruct"
print(*hub.load_dataset("OpenAssistant/oasst1", None), type(load(name)).__name__, load_tokenizer(name).eos_token)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # point_at has set HF_HOME
    assert done.stdout.split() == ["train", "validation", "Qwen2ForCausalLM", "<|im_end|>"], done.stderr


def test_a_folder_of_parquet_is_read_as_the_hub_would_read_it(tmp_path):
    """What `hf download --repo-type dataset` leaves: the advice for a machine without internet."""
    import datasets

    (tmp_path / "data").mkdir()
    for split, count in (("train", 5), ("test", 2)):
        talks = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}] for i in range(count)]
        rows = [{"messages": talk} for talk in talks]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = load_splits(compose("dataset=jsonl", f"dataset.path={tmp_path}", "dataset.max_rows=3").dataset)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3, 0, 2)
