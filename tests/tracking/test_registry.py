"""The registry: the best run of a study is its champion, and is found again under that name."""

import math
import shutil

import pytest
from omegaconf import OmegaConf

from manners.errors import MannersError
from manners.pipeline import dependencies, model_ref
from manners.pipeline.dependencies import Stage
from manners.tracking import registry, store
from tests.configs import changed, compose


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return changed(f"output_dir={tmp_path_factory.mktemp('out')}")


@pytest.fixture(scope="module")
def client(cfg):
    """MLflow's client of a fresh store, which takes seconds to make: each test has names of its own in it."""
    import mlflow

    client = mlflow.MlflowClient(store.absolute_uri(cfg.tracking.uri))
    store.experiment_id(client, cfg)
    return client


@pytest.fixture
def made(cfg, client, tmp_path):
    """Makes a finished run as training leaves it, less its weights: its MLflow id."""

    def make(name="run", method="sft", seed=1, model="tiny", note="| measure | before | after |", **tags):
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text(f'{{"made by": "{name}"}}')
        made_by = compose("dataset=polite_helper", f"method={method}")
        made_by.model.name = model
        (folder / "model" / "manners.yaml").write_text(OmegaConf.to_yaml(made_by, resolve=True))
        tags |= {"method": method, "fingerprint": "abc", "stage_mark": f"mark of {name}", "folder": str(folder)}
        tags = {f"manners.{k}": v for k, v in tags.items()} | {"mlflow.note.content": note, "mlflow.runName": name}
        run_id = client.create_run(store.experiment_id(client, cfg), tags=tags).info.run_id
        for key, value in {"model.name": model, "dataset.path": "package:polite_helper", "seed": seed}.items():
            client.log_param(run_id, key, value)
        client.log_artifacts(run_id, str(folder / "model"), "model")
        return run_id

    return make


def champion(client, name):
    return client.get_model_version_by_alias(name, "champion").run_id


def refusal(cfg, name):
    with pytest.raises(MannersError) as caught:
        store.fetch_run(cfg, name)
    return str(caught.value)


@pytest.mark.parametrize("lower, best", [(True, 1), (False, 2)])
def test_the_alias_moves_to_what_is_better_and_stays_otherwise(client, made, lower, best):
    """Metrics 2, 1, 3, 1: of losses the second is the best, of rewards the third; a tie moves nothing."""
    name, metrics, held = f"study-{lower}", [2.0, 1.0, 3.0, 1.0], []
    runs = [made(str(i)) for i in range(len(metrics))]
    for run, metric in zip(runs, metrics, strict=True):
        told = registry.register_model(client, run, name, metric, lower)
        held.append(champion(client, name))
        assert told.champion == (held[-1] == run)
    assert held == [runs[i] for i in ([0, 1, 1, 1] if lower else [0, 0, 2, 2])]
    assert held[-1] == runs[best]


def test_a_version_says_where_it_comes_from(client, made):
    run = made("one", seed=7, note="# one\n" + "| loss | 2 | 1 |\n" * 1000)
    told = registry.register_model(client, run, "told", 0.123456789, True)
    assert str(told) == "registered as models:/told/1, the new champion: the first, with 0.1235"
    version = client.get_model_version("told", "1")
    assert version.tags == {
        "method": "sft",
        "base_model": "tiny",
        "dataset": "package:polite_helper",
        "seed": "7",
        "metric": "0.123456789",
        "fingerprint": "abc",
    }
    assert version.source == f"runs:/{run}/model"  # by reference: no weights are stored twice
    assert version.description.startswith("# one\n| loss | 2 | 1 |\n") and len(version.description) <= 5000
    assert set(version.description.splitlines()) == {"# one", "| loss | 2 | 1 |", "…"}


@pytest.mark.parametrize("metric", [None, math.nan, math.inf, -math.inf])
def test_what_has_no_metric_is_registered_and_never_champion(client, made, metric):
    told = registry.register_model(client, made(), f"none-{metric}", metric, False)
    assert (told.version, told.champion) == ("1", False)
    assert client.get_registered_model(told.name).aliases == {}


def test_figures_of_another_method_or_base_do_not_compare(client, made):
    first = made("first")
    registry.register_model(client, first, "mixed", 1.0, True)
    told = registry.register_model(client, made("ppo", method="ppo"), "mixed", 9.0, False)
    assert "version 1, of method sft, and this is of ppo: their metrics do not compare" in told.why
    told = registry.register_model(client, made("other", model="gpt2"), "mixed", 0.5, True)
    assert "of base_model tiny, and this is of gpt2" in told.why
    assert champion(client, "mixed") == first


def test_a_run_that_is_registered_again_keeps_its_version(client, made):
    run = made()
    for _ in range(2):
        told = registry.register_model(client, run, "again", 1.0, True)
    assert (told.version, told.champion) == ("1", True)
    assert len(client.search_model_versions("name = 'again'")) == 1


def test_a_store_that_fails_costs_one_line(client, cfg, capsys):
    run_id = client.create_run(store.experiment_id(client, cfg)).info.run_id
    registry.register_and_report(cfg, client, run_id, 1.0)
    assert f"not registered (the store has no model of run {run_id})" in capsys.readouterr().err


def test_the_name_is_the_studys_and_a_reward_model_has_one_of_its_own():
    assert registry.name_for(changed("experiment_name=strictbot")) == "strictbot"
    assert registry.name_for(changed("experiment_name=my study/2:b@c")) == "my-study-2-b-c"
    assert registry.name_for(compose("method=reward", "adapter=none")) == "manners-reward"


def test_its_name_finds_the_run_where_it_lies_and_in_the_store_when_its_folder_is_gone(client, cfg, made, tmp_path):
    worse, better = made("worse"), made("better", summary="loss 2 → 1", reward_run_id="f" * 32)
    registry.register_model(client, worse, "found", 2.0, True)
    registry.register_model(client, better, "found", 1.0, True)
    names = ("models:/found@champion", "models:/found/2")
    for name in names:
        assert model_ref.resolve_model(name, cfg).model == str(tmp_path / "better" / "model")
    shutil.rmtree(tmp_path / "better")
    for name in names:
        chosen = model_ref.resolve_model(name, cfg)
        assert cfg.output_dir in chosen.model and chosen.name == "better"
        assert chosen.run.mark == "mark of better" and chosen.config.method.name == "sft"
        assert (chosen.run.model / "config.json").read_text() == '{"made by": "better"}'
        assert chosen.reward == "f" * 32  # whom /score asks
    assert model_ref.resolve_model("models:/found/1", cfg).name == "worse"


def test_a_policy_comes_from_the_registry_and_must_fit(client, cfg, made):
    registry.register_model(client, made("start"), "begin", 1.0, True)
    registry.register_model(client, made("judge", method="reward"), "begin-reward", 1.0, True)

    def stage(role, given):
        return Stage(changed(f"output_dir={cfg.output_dir}"), [], role, given)

    assert dependencies.resolve_explicit(stage("policy", "models:/begin@champion")).run == "start"
    assert dependencies.resolve_explicit(stage("reward", "models:/begin-reward@champion")).run == "judge"
    with pytest.raises(MannersError, match="is a run of method=reward: sft or"):
        dependencies.resolve_explicit(stage("policy", "models:/begin-reward@champion"))


@pytest.mark.parametrize(
    "name, says",
    [
        ("models:/knwn@champion", "Did you mean 'models:/known@champion'?"),
        ("models:/known@champoin", "Did you mean 'models:/known@champion'?"),
        ("models:/known/99", "Did you mean 'models:/known/"),
        ("models:/known", "the registry knows models:/NAME@ALIAS and models:/NAME/VERSION."),
        ("models:/known/latest", "the registry knows models:/NAME@ALIAS and models:/NAME/VERSION."),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(client, cfg, made, name, says):
    registry.register_model(client, made(), "known", 1.0, True)
    assert says in refusal(cfg, name) and name in refusal(cfg, name)


def test_a_registry_that_is_empty_says_how_to_fill_it(tmp_path):
    cfg = changed(f"output_dir={tmp_path}")
    assert "First: python train.py register_model=true" in refusal(cfg, "models:/strictbot@champion")
    assert not list(tmp_path.iterdir())  # and no store is made for the asking


def test_what_somebody_else_registered_is_refused_in_a_sentence(client, cfg):
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "s3://bucket/model")
    assert "models:/theirs/1 is no run's model" in refusal(cfg, "models:/theirs/1")
