"""Turn marks as tokens of their own: their embeddings train and come back with the adapter."""

import torch

from manners.models import lora
from manners.models.loading import load_model, load_tokenizer

MARKS = ["<|user|>", "<|assistant|>"]


def grown(tokenizer):
    model = load_model("tiny")
    lora.resize_embeddings(model, tokenizer)
    return model


def test_each_mark_is_one_token_and_plain_text_without():
    plain, added = load_tokenizer("tiny", chat_template="marked"), load_tokenizer("tiny", None, "marked", True, MARKS)
    assert [len(added(m, add_special_tokens=False)["input_ids"]) for m in MARKS] == [1, 1]
    assert all(len(plain(m, add_special_tokens=False)["input_ids"]) > 1 for m in MARKS)


def test_the_other_rows_stay_and_only_the_marks_rows_and_the_lora_train(tmp_path):
    tokenizer = load_tokenizer("tiny", None, "marked", True, MARKS)
    ids = tokenizer.convert_tokens_to_ids(MARKS)
    model = lora.prepare_for_training(grown(tokenizer), "lora", 4, 8, 0.0, "all-linear", tokens=ids)
    batch = tokenizer("<|user|>Hello.<|assistant|>Good day.", return_tensors="pt")["input_ids"]
    before = model(batch).logits.detach()
    optimizer = torch.optim.AdamW(lora.trainable_parameters(model).values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.eval()
    after = model(batch).logits.detach()
    assert not torch.allclose(before, after, atol=1e-3)

    with torch.no_grad():
        rows = model.get_input_embeddings()(torch.arange(len(tokenizer)))
        start = grown(tokenizer).get_input_embeddings().weight
    changed = (rows - start).abs().sum(1).nonzero().flatten().tolist()
    assert set(changed) <= set(ids) and changed

    model.save_pretrained(tmp_path, safe_serialization=True)
    again = lora.load_adapter(load_model("tiny"), tmp_path, tokenizer)
    assert torch.allclose(again(batch).logits, after, atol=1e-5)
