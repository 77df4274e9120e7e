"""Every model and dataset of conf/ that is on the hub, by its real name, from a cache as downloads leave it."""

import subprocess
import sys
from datetime import date
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
from manners.models.tokenizer import load_tokenizer
from manners.runtime.paths import CONF
from tests import hub_cache, hub_models, hub_rows
from tests.configs import compose

CONFIGS = {
    group: {file.stem: yaml.safe_load(file.read_text()) or {} for file in sorted((CONF / group).glob("*.yaml"))}
    for group in ("model", "dataset")
}
MODELS = {name: config for name, config in CONFIGS["model"].items() if config["name"] != "tiny"}
PATHS = {name: config.get("path", "") for name, config in CONFIGS["dataset"].items()}
DATASETS = {n: path for n, path in PATHS.items() if "/" in path and not path.startswith(("package:", "outputs/"))}
DECODERS = [name for name, config in MODELS.items() if config.get("decoder", True)]
ENCODERS = [name for name in MODELS if name not in DECODERS]
CONVERSATION = Conversation([
    {"role": "user", "content": "Hello?\n  Anybody?"},
    {"role": "assistant", "content": "Nobody."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is late."},
])  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    hub_cache.create(home, *hub_models.CHECKPOINTS, *hub_rows.SPLITS)
    with pytest.MonkeyPatch.context() as patch:
        hub_cache.use(home, patch)
        yield home


def test_hub_cache_covers_every_hub_name_in_conf():
    assert {config["name"] for config in MODELS.values()} == hub_models.CHECKPOINTS.keys()
    assert set(DATASETS.values()) == hub_rows.SPLITS.keys()


# --- Models ---


def tokenizer_of(name):
    config = MODELS[name]
    return load_tokenizer(
        config["name"], None, config.get("chat_template", "auto"), require_template=config.get("decoder", True)
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
ZEPHYR = "<s><|user|>\nHello?\n  Anybody?</s>\n<|assistant|>\nNobody.</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n"
GEMMA3 = """<bos><start_of_turn>user
Hello?
  Anybody?<end_of_turn>
<start_of_turn>model
Nobody.<end_of_turn>
<start_of_turn>user
Why?<end_of_turn>
<start_of_turn>model
"""
NO_THOUGHTS = "<think>\n\n</think>\n\n"  # Qwen3 begins every reply with them, in TRL's training template
WITHOUT_SYSTEM = CHATML.removeprefix("<|im_start|>system\n{system}<|im_end|>\n")
QWEN3 = WITHOUT_SYSTEM.replace("Nobody.", NO_THOUGHTS + "Nobody.")
LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: {today}\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello?\n  Anybody?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nNobody.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
SMOLLM2 = (WITHOUT_SYSTEM, "It is late.<|im_end|>", {"<|im_end|>"}, "<|im_end|>")
# Prompt, reply that carries loss, stop tokens, padding token.
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
    **dict.fromkeys(("smollm2", "smollm2_360m", "smollm2_1.7b"), SMOLLM2),
    "gemma3_270m": ("<bos>" + PLAIN.replace("<|endoftext|>", "<eos>"), " It is late.<eos>", {"<eos>"}, "<pad>"),
    "gemma3_1b": (GEMMA3, "It is late.<end_of_turn>", {"<eos>", "<end_of_turn>"}, "<pad>"),
    "qwen3_0.6b": (QWEN3, f"{NO_THOUGHTS}It is late.<|im_end|>", {"<|im_end|>", "<|endoftext|>"}, "<|endoftext|>"),
    "llama3.2_1b": (
        LLAMA3,
        "It is late.<|eot_id|>",
        {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"},
        "<|eot_id|>",
    ),
    "tinyllama": (ZEPHYR, "It is late.</s>", {"</s>"}, "</s>"),
}
CLASSES = {
    "qwen3": "Qwen3",
    "smollm2": "Llama",
    "llama3": "Llama",
    "gemma3": "Gemma3",
    "qwen": "Qwen2",
    "gpt2": "GPT2",
    "pythia": "GPTNeoX",
    "tinyllama": "Llama",
    "bert": "Bert",
    "minilm": "Bert",
}


def class_prefix(name):
    return next(prefix for start, prefix in CLASSES.items() if name.startswith(start))


@pytest.mark.parametrize("name", DECODERS)
def test_load_model_picks_the_checkpoints_class(name):
    model, tokenizer = loading.load_model(MODELS[name]["name"]), tokenizer_of(name)
    assert type(model).__name__ in (f"{class_prefix(name)}ForCausalLM", f"{class_prefix(name)}LMHeadModel")
    rows = model.get_input_embeddings().num_embeddings
    lora.resize_embeddings(model, tokenizer)  # no change, though Qwen and Pythia have more embeddings than tokens
    assert model.get_input_embeddings().num_embeddings == rows == model.config.vocab_size >= len(tokenizer)


@pytest.mark.parametrize("name", DECODERS)
def test_replies_and_their_stop_tokens_carry_loss(name):
    prompt, reply, _, _ = EXPECTED[name]
    prompt = prompt.replace("{today}", f"{date.today():%d %b %Y}")  # Llama 3.2's template has it
    tokenizer = tokenizer_of(name)
    assert prompt_text(CONVERSATION.messages[:3], tokenizer) == prompt
    [example] = tokenize([CONVERSATION], tokenizer, "assistant", 512)
    after = "" if name.startswith("llama3") else "\n"
    assert tokenizer.decode(example.input_ids) == prompt + reply + after
    label_runs = groupby(example.labels, key=lambda label: label != IGNORE_INDEX)
    trained = [tokenizer.decode(list(run)) for has_loss, run in label_runs if has_loss]
    assert trained == [reply.replace("It is late.", "Nobody."), reply]


def test_smollm2s_own_template_has_a_system_line():
    own = load_tokenizer(MODELS["smollm2"]["name"])
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert prompt_text(CONVERSATION.messages[:3], own) == CHATML.format(system=system)


@pytest.mark.parametrize("name", DECODERS)
def test_generation_stops_at_the_token_that_training_teaches(name):
    """A reply of the stop token alone is empty, and has ended."""
    _, trained_reply, stop_tokens, pad_token = EXPECTED[name]
    model, tokenizer = loading.load_model(MODELS[name]["name"]), tokenizer_of(name)
    assert set(tokenizer.convert_ids_to_tokens(loading.stop_token_ids(model, tokenizer))) == stop_tokens
    assert tokenizer.pad_token == pad_token
    [stop] = [token for token in stop_tokens if trained_reply.endswith(token)]
    reply = lambda: generate_texts(model, tokenizer, [CONVERSATION.messages[:3]], max_new_tokens=3)[0]  # noqa: E731
    assert len(reply().ids) == 3 and not reply().has_eos  # random weights do not stop
    end = torch.tensor([tokenizer.convert_tokens_to_ids(stop)])
    model.get_output_embeddings().register_forward_hook(lambda *args: args[-1].index_fill(-1, end, 1e4))
    assert (reply().text, reply().has_eos, reply().ids) == ("", True, end.tolist())


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_gets_prompt_and_reply_as_a_pair(name):
    tokenizer = tokenizer_of(name)
    model = reward_model.load_reward_base(MODELS[name]["name"], tokenizer)
    assert type(model).__name__ == f"{class_prefix(name)}ForSequenceClassification"
    long_prompt = "why " * 200  # MiniLM's tokenizer was saved with truncation and padding to 128 tokens
    [short, long] = reward_examples([([{"role": "user", "content": text}], "Late.") for text in ("Why?", long_prompt)],
                                 tokenizer, 512, decoder=False)  # fmt: skip
    tokens = tokenizer.convert_ids_to_tokens(short.input_ids)
    assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert [short.input_ids[0], short.input_ids[-1]] == [101, 102] and tokenizer.pad_token_id == 0
    prompt_length = tokens.index("[SEP]") + 1
    assert short.token_type_ids == [0] * prompt_length + [1] * (len(tokens) - prompt_length)
    assert tokenizer.decode(short.input_ids, skip_special_tokens=True) == "why? late."
    assert len(long.input_ids) > 200 and 0 not in long.input_ids


def test_uncached_model_error_names_the_download_command():
    with pytest.raises(MannersError) as error:
        loading.load_model("EleutherAI/pythia-70m")
    assert "model 'EleutherAI/pythia-70m' is not in its local cache" in str(error.value)
    assert "hf download EleutherAI/pythia-70m --local-dir FOLDER" in str(error.value)
    assert "model.name=FOLDER" in str(error.value)


# --- Datasets ---


NO_SHARES = ("dataset.validation_share=0", "dataset.test_share=0")  # nothing is carved out of training


def splits_and_sizes(name, *overrides):
    splits = load_splits(compose(f"dataset={name}", *overrides).dataset)
    return splits, [len(getattr(splits, split)) for split in ("train", "validation", "test")]


def roles_and_last(conversation):
    """The initials of the roles, and the text of the last turn."""
    messages = conversation.messages
    return "".join(m["role"][0] for m in messages), messages[-1]["content"]


def test_oasst1_has_two_conversations_per_english_tree():
    """The other messages are counted in the notes."""
    splits, sizes = splits_and_sizes("oasst1", *NO_SHARES)
    assert sizes == [2 * 30, 2 * 6, 0]
    assert [roles_and_last(conversation) for conversation in splits.train[:2]] == [
        ("uaua", "Then it keeps for 4 days."),
        ("ua", "Nobody knows. Most bread keeps for 2 days there."),
    ]
    assert [conversation.masked_turns for conversation in splits.train[:2]] == [(), ()]
    assert splits.validation[0].messages[0]["content"] == "How long does honey keep on shelf 30?"
    assert splits.notes == [
        "36 messages: deleted",
        "36 messages: failed the review",
        "12 messages: below an excluded message",
        "2 messages: language de",
    ]


def test_oasst1_user_ends_conversations_with_eos():
    splits, sizes = splits_and_sizes("oasst1_user", *NO_SHARES)
    assert sizes == [30, 6, 0]
    assert roles_and_last(splits.train[0]) == ("uauau", "<|endoftext|>")


def test_ultrachat_reads_the_sft_splits():
    splits, sizes = splits_and_sizes("ultrachat", *NO_SHARES)
    assert sizes == [40, 0, 10]
    assert roles_and_last(splits.train[39]) == ("uaua", "Then it keeps for 82 days.")
    assert roles_and_last(splits.test[0]) == ("uaua", "Then it keeps for 84 days.")


def test_ultrachat_reads_splits_that_are_named():
    splits, sizes = splits_and_sizes("ultrachat", "dataset.splits=[train_gen]", *NO_SHARES)
    assert sum(sizes) == 5
    assert splits.train[0].source == "HuggingFaceH4/ultrachat_200k train_gen[0]"


def test_guanaco_format_is_detected():
    splits, sizes = splits_and_sizes("guanaco", *NO_SHARES)
    assert sizes == [21, 0, 6]
    assert roles_and_last(splits.train[0]) == ("uaua", "Then it keeps for 4 days.")
    assert roles_and_last(splits.train[20]) == ("uau", "And if the salad stands in the cold?")


def test_missing_test_rows_are_carved_out_of_training():
    splits, sizes = splits_and_sizes("oasst1")
    assert sizes[1] == 2 * 6 and sizes[2] > 0 and sum(sizes) == 2 * 36
    trees = [{c.metadata["message_tree_id"] for c in rows} for rows in (splits.train, splits.test)]
    assert not trees[0] & trees[1]


def test_dolly_is_split_by_hash():
    splits, sizes = splits_and_sizes("dolly")
    assert sum(sizes) == 60 and min(sizes) > 0
    first_turns = {c.source: roles_and_last(c)[0] + c.messages[0]["content"] for c in splits.train}
    assert first_turns["databricks/databricks-dolly-15k train[2]"] == "uaAnd if the tea stands in the cold?"


@pytest.mark.parametrize(
    ("name", "split", "suggestion"), [("ultrachat", "train_stf", "train_sft"), ("oasst1", "validate", "validation")]
)
def test_unknown_split_error_suggests_the_nearest(name, split, suggestion):
    with pytest.raises(MannersError) as error:
        splits_and_sizes(name, f"dataset.splits=[{split}]")
    assert str(error.value) == f"dataset.splits: {DATASETS[name]} has no {split}. Did you mean '{suggestion}'?"


def test_uncached_dataset_error_names_the_download_command():
    with pytest.raises(MannersError) as error:
        splits_and_sizes("jsonl", "dataset.path=OpenAssistant/oasst2")
    assert "dataset 'OpenAssistant/oasst2' is not in its local cache" in str(error.value)
    assert "hf download --repo-type dataset OpenAssistant/oasst2 --local-dir FOLDER" in str(error.value)
    assert "dataset.path=FOLDER" in str(error.value)


def test_new_process_finds_the_cache_by_hf_home_alone():
    """The hub's libraries read where their cache is when they are imported."""
    code = """
from manners.models.loading import load_model
from manners.models.tokenizer import load_tokenizer
from manners.runtime import hub
name = "Qwen/Qwen2.5-0.5B-Instruct"
print(*hub.load_dataset("OpenAssistant/oasst1", None), type(load_model(name)).__name__, load_tokenizer(name).eos_token)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # hub_cache.use has set HF_HOME
    assert done.stdout.split() == ["train", "validation", "Qwen2ForCausalLM", "<|im_end|>"], done.stderr


def test_folder_of_parquet_files_is_read_by_split(tmp_path):
    """What `hf download --repo-type dataset` leaves: our advice for a machine without internet."""
    import datasets

    (tmp_path / "data").mkdir()
    for split, count in (("train", 5), ("test", 2)):
        conversations = [
            [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}] for i in range(count)
        ]
        rows = [{"messages": messages} for messages in conversations]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = load_splits(compose("dataset=jsonl", f"dataset.path={tmp_path}", "dataset.max_rows=3", *NO_SHARES).dataset)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3, 0, 2)
