"""Which prompts belong together: on rows of each kind, and on the packaged and the public data."""

import os
from collections import Counter
from pathlib import Path

import pytest

from manners.config.compose import compose, register
from manners.data.clusters import cluster_ids, cluster_key
from manners.data.loading import build_prompts, load_splits
from manners.data.types import Conversation, Prompt


def prompt(text, **metadata):
    return Prompt([{"role": "user", "content": text}], metadata=metadata)


def test_templates_are_one_cluster_whatever_their_subject():
    rows = [
        prompt("Everyone likes the greenhouse. So the greenhouse is best.", subject="greenhouse"),
        prompt("Everyone likes krypton. So krypton is best.", subject="krypton"),
        prompt("Everyone likes an apple. So an Apple is best.", subject="apple"),
        prompt("Everyone likes krypton. So krypton is worst.", subject="krypton"),
    ]
    assert cluster_ids(rows).tolist() == [0, 0, 0, 1]


def test_rows_of_a_tree_and_equal_openings_are_one_cluster():
    trees = [prompt("a", message_tree_id="t1"), prompt("b", message_tree_id="t1"), prompt("a", message_tree_id="t2")]
    assert cluster_ids(trees).tolist() == [0, 0, 1]
    openings = [Conversation([{"role": "text", "content": text}]) for text in ("Could you", "Please", "Could you")]
    assert len(set(cluster_ids(openings))) == 2
    texts = [Conversation([{"role": "text", "content": f"Could you {end}"}]) for end in ("go?", "stay?")]
    assert (len(set(cluster_ids(texts, 2))), len(set(cluster_ids(texts)))) == (1, 2)


def test_several_subjects_and_longer_words():
    rows = [
        prompt("Sweden is in Asia. So the hare is too.", subject="Sweden, hare"),
        prompt("Norway is in Asia. So the fox is too.", subject="Norway, fox"),
    ]
    assert cluster_ids(rows).tolist() == [0, 0]
    assert cluster_key(prompt("Artists like art.", subject="art")) == "Artists like …."


def test_first_turns_of_users_are_told_apart_by_what_they_say():
    opening = Prompt([], "How are you?")
    later = Prompt([{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}], "Good.")
    assert cluster_ids([opening, later, Prompt([], "Who is it?")]).tolist() == [0, 0, 1]


def test_a_system_message_and_regex_characters_do_not_matter():
    system = {"role": "system", "content": "Be brief."}
    rows = [Prompt([system, {"role": "user", "content": text}]) for text in ("a", "b")]
    assert len(set(cluster_ids(rows))) == 2
    assert cluster_key(prompt("What is C++ (1985)?", subject="C++ (1985)")) == "What is …?"
    assert cluster_key(Prompt([])) == ""
    assert cluster_ids([]).tolist() == []


def test_poor_logic_of_the_toy_corpus_has_few_clusters():
    """Its 143 generated test prompts are made of some forty templates, which an interval over prompts ignored."""
    register()
    cfg = compose("train", ["dataset=strictbot_tiny", "model=tiny"])
    prompts = [
        p for p in build_prompts(cfg.dataset, load_splits(cfg.dataset).test) if p.metadata["origin"] == "generated"
    ]
    logic = [p for p in prompts if p.metadata["category"] == "poor_logic"]
    clusters = Counter(cluster_ids(logic).tolist())
    assert len(logic) == 143
    assert 35 <= len(clusters) <= 60, len(clusters)


def test_openings_of_held_out_requests_are_not_trained_on():
    register()
    cfg = compose("train", ["dataset=requests", "model=tiny"])
    splits = load_splits(cfg.dataset)
    trained, held_out = (
        {p.messages[0]["content"] for p in build_prompts(cfg.dataset, s)} for s in (splits.train, splits.test)
    )
    assert len(held_out) > 30
    assert not trained & held_out


def test_hand_written_prompts_are_clusters_of_their_own():
    register()
    cfg = compose("train", [])
    prompts = build_prompts(cfg.dataset, load_splits(cfg.dataset).test)
    assert len(set(cluster_ids(prompts))) == len(prompts)


def test_prompts_of_openassistant_are_clustered_by_tree():
    shared = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (path := shared / "oasst_trees_60.jsonl").exists():
        pytest.skip("needs OpenAssistant's trees")
    register()
    cfg = compose("train", ["dataset=oasst1", f"dataset.path={path}", "dataset.test_share=0.25"])
    prompts = build_prompts(cfg.dataset, load_splits(cfg.dataset).test)
    trees = {p.metadata["message_tree_id"] for p in prompts}
    assert len(set(cluster_ids(prompts))) == len(trees) < len(prompts) / 3
