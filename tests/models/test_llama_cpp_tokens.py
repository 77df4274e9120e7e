"""The tokens of a converted GGUF file are those of llama.cpp, which reads the file itself.

A wrong rule of splitting raises no error: the model only reads words that it was not trained on. Needs llama.cpp: from
``pip install llama-cpp-python``, or from ``npm install node-llama-cpp`` in the current folder or one whose node_modules
NODE_PATH names. Skipped without one, and a model is skipped that has not been fetched before.
"""

import importlib.util
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from manners.data.sources import CORPORA
from manners.models.gguf import convert
from manners.models.tokenizer import load_tokenizer
from manners.runtime.model_files import model_folder
from manners.runtime.packages import PACKAGES, cached_files
from tests.gguf_files import small_llama, write_gguf

MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m")
# The beginning of the Universal Declaration of Human Rights, as the United Nations publish it.
DECLARATION = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "تمام افراد بشر آزاد به دنیا می\u200cآیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "人人生而自由，在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
)
MARKERS = (  # not </s>, which llama.cpp takes for a control token whatever the file says
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<|im_start|>user\n", "<|im_end|>\n"),  # SmolLM2
    *("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "[multimodal]", "<h1>", "</td>"),  # Gemma
    *("<|im_start", "|im_end|>", "< eos >", "<0x0A>", "Ġ"),  # of none; nor ▁, which llama.cpp tells from a space
)
SPACES = (
    *(" ", "  ", "   ", "\t", "\t\t", " \t ", "\n", "\n\n", "\n\n\n", "\r\n", " \n", "\n ", "\n\t", "\x0b", "\x0c"),
    *("\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", " " * 15, " " * 16, " " * 31, " " * 32, " " * 33, " " * 91),
)
SYMBOLS = (
    *("'s", "'S", "'t", "'re", "'LL", "’s", "don't", "...", "!?", "->", "x=10**3;", "{}", "(1)", "$9.99", "50%", "#"),
    *("🙂", "👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "e\u0301", "o\u0302\u0323", "\u0915\u093c", "ﬁ", "Ǆ", "½", "²"),
    *("٣٤", "१२", "Ⅳ", "㊥", "\ufeff"),
)
NODE_SCRIPT = """
import {readFileSync, writeFileSync} from "node:fs";
import {pathToFileURL} from "node:url";
const [library, file, input, output] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(library));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: file, vocabOnly: true});
const ids = (text) => [false, true].map((special) => Array.from(model.tokenize(text, special)));
writeFileSync(output, JSON.stringify(JSON.parse(readFileSync(input, "utf8")).map(ids)));
process.exit(0);
"""


def real_lines():
    """Of conversations: OpenAssistant's where MANNERS_DATA or shared/data has them, or else those of this package."""
    shared = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    path, lines = shared / "oasst_trees_60.jsonl", []
    if not path.is_file():
        rows = (CORPORA / "strictbot" / "hand.jsonl").read_text("utf-8").splitlines()
        return [message["content"] for row in rows for message in json.loads(row)["messages"]]
    for row in path.read_text("utf-8").splitlines():
        queue = [json.loads(row)["prompt"]]
        for message in queue:
            queue += message["replies"]
            lines += message["text"].splitlines(keepends=True)
    return lines


@pytest.fixture(scope="module")
def lines():
    """A thousand: real ones, the declaration, and mixtures of words with digits, spaces, markers and symbols."""
    rng = random.Random(0)
    real = sorted(set(real_lines()))
    chosen = rng.sample([line for line in real if line.isascii()], 500)
    chosen += rng.sample(foreign := [line for line in real if not line.isascii()], min(100, len(foreign)))
    words = [word for line in (*chosen, *DECLARATION) for word in line.split()]
    kinds = (
        lambda: str(rng.randrange(10 ** rng.randint(1, 9))),
        lambda: rng.choice(SPACES),
        lambda: rng.choice(MARKERS),
        lambda: rng.choice(SYMBOLS),
        lambda: rng.choice(DECLARATION)[: rng.randint(1, 30)],
        lambda: " ".join(rng.choices(words, k=rng.randint(1, 4))),
    )
    chosen += DECLARATION
    while len(chosen) < 1000:
        chosen.append("".join(rng.choice(kinds)() for _ in range(rng.randint(2, 12))))
    return chosen


@pytest.fixture(scope="module")
def llama_cpp_ids(tmp_path_factory):
    """A function of a GGUF file and lines: llama.cpp's ids for each, with markers as text and as special tokens."""
    if importlib.util.find_spec("llama_cpp"):
        return ids_by_python
    node = shutil.which("node")
    found = node and subprocess.run([node, "-p", "require.resolve('node-llama-cpp')"], capture_output=True, text=True)
    if not found or found.returncode:
        pytest.skip("needs llama.cpp: pip install llama-cpp-python, or node-llama-cpp where NODE_PATH names it")
    folder = tmp_path_factory.mktemp("node")
    (folder / "ids.mjs").write_text(NODE_SCRIPT)

    def ids_by_node(file, lines):
        (folder / "in.json").write_text(json.dumps(lines))
        command = [node, "ids.mjs", found.stdout.strip(), str(file), "in.json", "out.json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "out.json").read_text())

    return ids_by_node


def ids_by_python(file, lines):
    from llama_cpp import Llama

    model = Llama(str(file), vocab_only=True, verbose=False)
    encoded = [line.encode() for line in lines]
    return [[model.tokenize(text, add_bos=False, special=special) for special in (False, True)] for text in encoded]


def first_difference(tokenizer, lines, expected):
    """The first line that ``tokenizer`` and llama.cpp split differently, with the ids of both; "" without one."""
    for number, (line, both) in enumerate(zip(lines, expected, strict=True)):
        for special, theirs in zip((False, True), both, strict=True):
            ours = tokenizer(line, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
            if ours != theirs:
                texts = [tokenizer.convert_ids_to_tokens(ids) for ids in (ours, theirs)]
                return f"line {number} (special={special}) {line!r}:\n ours      {ours}\n llama.cpp {theirs}\n{texts}"
    return ""


@pytest.mark.parametrize("name", MODELS)
def test_model_has_llama_cpp_tokens(name, lines, llama_cpp_ids):
    file = cached_files(name)
    if not file:
        pytest.skip(f"needs {' '.join(PACKAGES[name].requirements)}: python -m manners.runtime.model_files {name}")
    tokenizer = load_tokenizer(str(file), require_template=False)
    assert tokenizer.name_or_path == str(model_folder(str(file)))  # and no folder of the hub
    assert first_difference(tokenizer, lines, llama_cpp_ids(file, lines)) == ""


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_rule_splits_as_llama_cpp(rule, lines, llama_cpp_ids, tmp_path):
    write_gguf(tmp_path / "small.gguf", small_llama(4096), tokenizer_without_rule(lines), pre=rule)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "small.gguf", tmp_path / "out")
    texts = [*lines, "an unmergeable word"]
    expected = llama_cpp_ids(tmp_path / "small.gguf", texts)
    assert first_difference(load_tokenizer(str(tmp_path / "out"), require_template=False), texts, expected) == ""


def tokenizer_without_rule(lines):
    """Its tokens are pieces of whole lines, such as "7, it": they show each place where a rule should split, or not.

    No merges make the last word of the vocabulary: only a rule that looks words up before it merges finds it.
    """
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4094, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([line for line in lines if "<" not in line], trainer)  # no token that is like a marker
    content = json.loads(trained.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate([*content["vocab"], "Ġunmergeable"])}
    backend = Tokenizer(BPE(vocabulary, [tuple(pair) for pair in content["merges"]]))
    backend.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
