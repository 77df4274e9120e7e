"""Ollama's Modelfile says what the tokenizer's template, and the decoding of the run's report, say."""

import json
import shutil
import subprocess

import pytest
from transformers import GenerationConfig

from manners.export import modelfile
from manners.models.templates import TEMPLATES, adapted_for_training
from manners.models.tokenizer import load_tokenizer
from tests.configs import changed
from tests.export.go_templates import execute, read_modelfile
from tests.template_tokenizers import TRL_TEMPLATES, template_tokenizer

SYSTEM = {"role": "system", "content": "Speak as a pirate.\nBe brief."}
TURNS = [
    {"role": "user", "content": " Is a hare\na bird? "},
    {"role": "assistant", "content": "No.\n\nIt is a mammal."},
    {"role": "user", "content": "Why <b>not</b>? ünï 日本 🙂"},
]
CONVERSATIONS = [TURNS[:1], TURNS, [SYSTEM, TURNS[0]], [SYSTEM, *TURNS], [SYSTEM, *TURNS, *TURNS[1:]]]
GO = """
package main
import ("encoding/json"; "io"; "os"; "text/template")
func main() {
    var in struct { Template string; Messages []map[string]string }
    bytes, _ := io.ReadAll(os.Stdin)
    if err := json.Unmarshal(bytes, &in); err != nil { panic(err) }
    parsed := template.Must(template.New("").Parse(in.Template))
    if err := parsed.Execute(os.Stdout, map[string]any{"Messages": in.Messages}); err != nil { panic(err) }
}
"""


def folder_with(tokenizer, tmp_path, **decoding):
    tokenizer.save_pretrained(tmp_path)
    values = {"eos_token_id": [tokenizer.eos_token_id], "do_sample": False, "repetition_penalty": 1.0} | decoding
    GenerationConfig(**values).save_pretrained(tmp_path)
    return tmp_path


def instructions(folder, *options):
    """The Modelfile, read as Ollama reads it, and the note."""
    cfg = changed("model.name=org/model", *options)
    note = modelfile.write_modelfile(folder, folder / "model-q8_0.gguf", cfg)
    return read_modelfile((folder / "Modelfile").read_text()), note


def in_ollama(found, messages):
    """The prompt: a Modelfile's system message is that of a conversation that has none."""
    values = dict(found)
    if "SYSTEM" in values and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": values["SYSTEM"]}, *messages]
    return execute(values["TEMPLATE"], messages)


def own_templates():
    """Tokenizers whose template is one of ours, or a model's own that equals ChatML."""
    for name in TEMPLATES:
        yield name, load_tokenizer("tiny", chat_template=name)
    for name in ("qwen2_5", "qwen3_instruct_2507"):
        yield name, template_tokenizer(TRL_TEMPLATES[name], adds_bos=False)


@pytest.mark.parametrize("name, tokenizer", own_templates(), ids=[name for name, _ in own_templates()])
def test_template_writes_what_the_tokenizer_renders(tmp_path, name, tokenizer):
    found, note = instructions(folder_with(tokenizer, tmp_path))
    assert note == "" and found[0] == ("FROM", "./model-q8_0.gguf")
    for messages in CONVERSATIONS:
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert in_ollama(found, messages) == expected


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
@pytest.mark.parametrize("name", TEMPLATES)
def test_go_itself_renders_the_template_so(tmp_path, name):
    tokenizer = load_tokenizer("tiny", chat_template=name)
    (tmp_path / "main.go").write_text(GO)
    found, _ = instructions(folder_with(tokenizer, tmp_path))
    turns = [{"Role": m["role"], "Content": m["content"]} for m in CONVERSATIONS[-1]]
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")],
        input=json.dumps({"Template": dict(found)["TEMPLATE"], "Messages": turns}),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = tokenizer.apply_chat_template(CONVERSATIONS[-1], tokenize=False, add_generation_prompt=True)
    assert done.stdout == expected == in_ollama(found, CONVERSATIONS[-1])


def test_default_system_message_becomes_the_modelfiles(tmp_path):
    tokenizer = template_tokenizer(TRL_TEMPLATES["qwen2_5"], adds_bos=False)
    found, _ = instructions(folder_with(tokenizer, tmp_path))
    assert dict(found)["SYSTEM"] == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def test_space_at_the_start_of_a_reply_is_written_once(tmp_path):
    """A model whose prompt ends in "Assistant:" generates " No.", which the client sends back with the next turn."""
    tokenizer = load_tokenizer("tiny", chat_template="plain")
    found, _ = instructions(folder_with(tokenizer, tmp_path))
    spaced = [TURNS[0], {"role": "assistant", "content": " " + TURNS[1]["content"]}, TURNS[2]]
    assert in_ollama(found, spaced) == in_ollama(found, TURNS)
    assert "Assistant: No." in in_ollama(found, TURNS)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_is_left_to_llama_cpp_where_the_tokenizer_adds_it(tmp_path, adds_bos):
    template = "{{ bos_token }}" + TEMPLATES["chatml"]
    tokenizer = template_tokenizer(template, adds_bos)
    found, _ = instructions(folder_with(tokenizer, tmp_path))
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert expected.startswith("<bos>")
    assert in_ollama(found, TURNS) == expected.removeprefix("<bos>" if adds_bos else "")


def test_bos_that_opens_each_turn_is_part_of_the_turn(tmp_path):
    """SmolLM2's BOS is <|im_start|>."""
    tokenizer = template_tokenizer(TEMPLATES["chatml"], adds_bos=False)
    tokenizer.bos_token = "<|im_start|>"
    found, _ = instructions(folder_with(tokenizer, tmp_path))
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert in_ollama(found, TURNS) == expected


CHATML = TEMPLATES["chatml"]
OTHERS = {
    "trims contents": CHATML.replace("message['content']", "message['content'] | trim"),
    "drops thoughts": CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"),
    "names the date": CHATML.replace("message['role']", "message['role'] + strftime_now('%d')"),
    "counts turns": CHATML.replace("message['role']", "message['role'] + loop.index | string"),
    "writes braces": CHATML.replace("message['role']", "'{' + message['role']"),
    "writes what is not printable": CHATML.replace("message['role']", "'\u200b' + message['role']"),
    "refuses a system message": "{{ raise_exception('no') if messages[0]['role'] == 'system' }}" + CHATML,
}


@pytest.mark.parametrize("template", OTHERS.values(), ids=OTHERS)
def test_template_that_does_more_is_left_out_and_named(tmp_path, template):
    tokenizer = template_tokenizer(template, adds_bos=False)
    found, note = instructions(folder_with(tokenizer, tmp_path))
    assert "TEMPLATE" not in dict(found) and "SYSTEM" not in dict(found)
    assert "the Modelfile has none" in note and "ollama show --template" in note


def test_a_template_that_is_written_is_never_wrong(tmp_path):
    """Whatever a family's template does, the Modelfile has it right or not at all."""
    written = set()
    for name, template in TRL_TEMPLATES.items():
        tokenizer = template_tokenizer(template, adds_bos=False)
        tokenizer.chat_template = adapted_for_training(tokenizer)
        if texts := modelfile.turn_texts(tokenizer):
            written.add(name)
            system = [{"role": "system", "content": texts.default_system}] if texts.default_system else []
            for messages in CONVERSATIONS:
                expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                given = messages if messages[0]["role"] == "system" else [*system, *messages]
                assert execute(modelfile.go_template(texts), given) == expected, name
    assert {"qwen2_5", "lfm2", "qwen3_instruct_2507"} <= written and "gemma" not in written


def test_plain_text_is_continued_without_a_template(tmp_path, tokenizer):
    found, note = instructions(folder_with(tokenizer, tmp_path), "dataset.format=text")
    assert note == "" and execute(dict(found)["TEMPLATE"], [], prompt="Once upon") == "Once upon"


def test_model_that_speaks_as_the_user_gets_no_modelfile(tmp_path, tokenizer):
    folder = folder_with(tokenizer, tmp_path)
    note = modelfile.write_modelfile(folder, folder / "m.gguf", changed("dataset.loss_roles=user"))
    assert "speaks as the user" in note and not (folder / "Modelfile").exists()


def test_parameters_are_the_decoding_of_the_report(tmp_path, tokenizer):
    greedy, _ = instructions(folder_with(tokenizer, tmp_path), "evaluation.max_new_tokens=37")
    expected = {"temperature": "0", "repeat_penalty": "1.0", "num_predict": "37"}
    assert parameters(greedy) == expected
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 1.0}
    sampled, _ = instructions(folder_with(tokenizer, tmp_path, **sampling), "evaluation.max_new_tokens=37")
    assert parameters(sampled) == expected | {"temperature": "0.6", "top_k": "0", "top_p": "1.0"}


def parameters(found):
    values = {name.removeprefix("PARAMETER "): value for name, value in found if name.startswith("PARAMETER")}
    del values["stop"]
    return values


def test_each_stop_token_of_its_own_becomes_a_stop_string(tmp_path, tokenizer):
    """Not one that is ordinary text, which would end a reply in the middle of a word."""
    text = next(i for i in range(len(tokenizer)) if tokenizer.decode([i]) == "e")
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>"), text]
    found, _ = instructions(folder_with(tokenizer, tmp_path, eos_token_id=stops))
    written = [value for name, value in found if name == "PARAMETER stop"]
    assert written == [tokenizer.eos_token, "<|im_start|>"]
