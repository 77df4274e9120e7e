"""model.added_tokens: role markers as single tokens, whose embeddings are trained and saved with the adapter."""

import torch

from manners.models import lora
from manners.models.loading import load_model
from manners.models.tokenizer import load_tokenizer

MARKERS = ["<|user|>", "<|assistant|>"]


def resized_model(tokenizer):
    model = load_model("tiny")
    lora.resize_embeddings(model, tokenizer)
    return model


def test_load_tokenizer_makes_each_added_token_one_id():
    plain, added = load_tokenizer("tiny", chat_template="marked"), load_tokenizer("tiny", None, "marked", True, MARKERS)
    assert [len(added(m, add_special_tokens=False)["input_ids"]) for m in MARKERS] == [1, 1]
    assert all(len(plain(m, add_special_tokens=False)["input_ids"]) > 1 for m in MARKERS)


def test_only_added_embeddings_and_lora_train_and_reload(tmp_path):
    tokenizer = load_tokenizer("tiny", None, "marked", True, MARKERS)
    ids = tokenizer.convert_tokens_to_ids(MARKERS)
    model = lora.prepare_for_training(
        resized_model(tokenizer), "lora", 4, 8, 0.0, "all-linear", trainable_token_indices=ids
    )
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
        embeddings = model.get_input_embeddings()(torch.arange(len(tokenizer)))
        initial = resized_model(tokenizer).get_input_embeddings().weight
    changed = (embeddings - initial).abs().sum(1).nonzero().flatten().tolist()
    assert set(changed) <= set(ids) and changed

    model.save_pretrained(tmp_path, safe_serialization=True)
    reloaded = lora.load_adapter(load_model("tiny"), tmp_path, tokenizer)
    assert torch.allclose(reloaded(batch).logits, after, atol=1e-5)
