"""The registry: the best run of an experiment is its champion, and is found by that name."""

import json
import math
import shutil

import pytest
from omegaconf import OmegaConf

from manners.config.compose import RunSpec
from manners.errors import MannersError
from manners.pipeline import dependencies, model_ref
from manners.tracking import registry, store
from tests.configs import changed, compose


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return changed(f"output_dir={tmp_path_factory.mktemp('out')}")


@pytest.fixture(scope="module")
def client(cfg):
    """MLflow's client of one store for all tests, in which each has names of its own."""
    import mlflow

    client = mlflow.MlflowClient(store.absolute_uri(cfg.tracking.uri))
    store.experiment_id(client, cfg)
    return client


@pytest.fixture
def finished_run(cfg, client, tmp_path):
    """Makes a finished run as training leaves it, without its weights, and returns its MLflow id."""

    def make(name="run", method="sft", seed=1, model="tiny", note="| metric | before | after |", **tags):
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text(f'{{"run": "{name}"}}')
        config = compose("dataset=polite_helper", f"method={method}")
        config.model.name = model
        (folder / "model" / "manners.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        tags |= {"method": method, "fingerprint": "abc", "folder": str(folder)}
        tags["weights_fingerprint"] = f"weights of {name}"
        tags = {f"manners.{k}": v for k, v in tags.items()} | {"mlflow.note.content": note, "mlflow.runName": name}
        run_id = client.create_run(store.experiment_id(client, cfg), tags=tags).info.run_id
        for key, value in {"model.name": model, "dataset.path": "package:polite_helper", "seed": seed}.items():
            client.log_param(run_id, key, value)
        client.log_artifacts(run_id, str(folder / "model"), "model")
        client.set_terminated(run_id)
        state = {"status": "finished", "mlflow_run_id": run_id, "weights_fingerprint": f"weights of {name}"}
        (folder / "run.json").write_text(json.dumps(state))
        return run_id

    return make


def champion(client, name):
    return client.get_model_version_by_alias(name, "champion").run_id


def error_of(cfg, name):
    with pytest.raises(MannersError) as caught:
        store.fetch_run(cfg, name)
    return str(caught.value)


@pytest.mark.parametrize("lower, best", [(True, 1), (False, 2)])
def test_register_model_moves_the_alias_to_the_best(client, finished_run, lower, best):
    """Metrics 2, 1, 3, 1: of losses the second is the best, of rewards the third; a tie moves nothing."""
    name, metrics, champions = f"experiment-{lower}", [2.0, 1.0, 3.0, 1.0], []
    runs = [finished_run(str(i)) for i in range(len(metrics))]
    for run, metric in zip(runs, metrics, strict=True):
        version = registry.register_model(client, run, name, metric, lower)
        champions.append(champion(client, name))
        assert version.is_champion == (champions[-1] == run)
    assert champions == [runs[i] for i in ([0, 1, 1, 1] if lower else [0, 0, 2, 2])]
    assert champions[-1] == runs[best]


def test_version_has_tags_source_and_description_of_its_run(client, finished_run):
    run = finished_run("one", seed=7, note="# one\n" + "| loss | 2 | 1 |\n" * 1000)
    registered = registry.register_model(client, run, "tagged", 0.123456789, True)
    assert str(registered) == "registered as models:/tagged/1, the new champion: the first, with 0.1235"
    version = client.get_model_version("tagged", "1")
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
def test_run_without_a_finite_metric_is_never_champion(client, finished_run, metric):
    version = registry.register_model(client, finished_run(), f"none-{metric}", metric, False)
    assert (version.version, version.is_champion) == ("1", False)
    assert client.get_registered_model(version.name).aliases == {}


def test_metrics_of_another_method_or_base_do_not_compare(client, finished_run):
    first = finished_run("first")
    registry.register_model(client, first, "mixed", 1.0, True)
    version = registry.register_model(client, finished_run("ppo", method="ppo"), "mixed", 9.0, False)
    assert "version 1, has method sft, and this has ppo: their metrics do not compare" in version.reason
    version = registry.register_model(client, finished_run("other", model="gpt2"), "mixed", 0.5, True)
    assert "has base_model tiny, and this has gpt2" in version.reason
    assert champion(client, "mixed") == first


def test_registering_again_keeps_the_version(client, finished_run):
    run = finished_run()
    for _ in range(2):
        version = registry.register_model(client, run, "again", 1.0, True)
    assert (version.version, version.is_champion) == ("1", True)
    assert len(client.search_model_versions("name = 'again'")) == 1


def test_register_and_report_prints_errors_of_the_store(client, cfg, capsys):
    run_id = client.create_run(store.experiment_id(client, cfg)).info.run_id
    registry.register_and_report(cfg, client, run_id, 1.0)
    assert f"not registered (the store has no model of run {run_id})" in capsys.readouterr().err


def test_registered_name_is_the_experiments_with_reward_apart():
    assert registry.registered_name(changed("experiment_name=strictbot")) == "strictbot"
    assert registry.registered_name(changed("experiment_name=my trial/2:b@c")) == "my-trial-2-b-c"
    assert registry.registered_name(compose("method=reward", "adapter=none")) == "manners-reward"


def test_registered_name_finds_the_run_locally_or_in_the_store(client, cfg, finished_run, tmp_path):
    worse, better = finished_run("worse"), finished_run("better", summary="loss 2 → 1", reward_run_id="f" * 32)
    registry.register_model(client, worse, "found", 2.0, True)
    registry.register_model(client, better, "found", 1.0, True)
    names = ("models:/found@champion", "models:/found/2")
    for name in names:
        assert model_ref.resolve_model(name, cfg).path == str(tmp_path / "better" / "model")
    shutil.rmtree(tmp_path / "better")
    for name in names:
        ref = model_ref.resolve_model(name, cfg)
        assert cfg.output_dir in ref.path and ref.name == "better"
        assert ref.run.fingerprint == "weights of better" and ref.config.method.name == "sft"
        assert (ref.run.model_dir / "config.json").read_text() == '{"run": "better"}'
        assert ref.reward_model == "f" * 32  # for the chat's /score
    assert model_ref.resolve_model("models:/found/1", cfg).name == "worse"


def test_run_that_the_store_has_unfinished_is_refused(client, cfg, finished_run):
    run_id = finished_run("half")
    client.set_terminated(run_id, "FAILED")
    with pytest.raises(MannersError, match="the run half has not finished"):
        model_ref.resolve_model(run_id, cfg)


def test_folder_that_did_not_finish_is_not_taken_for_the_run(client, cfg, finished_run, tmp_path):
    """The store has the whole model; the folder was overwritten by a later run that crashed."""
    run_id = finished_run("again")
    (tmp_path / "again" / "run.json").write_text(json.dumps({"status": "running", "mlflow_run_id": run_id}))
    assert str(tmp_path / "again") not in model_ref.resolve_model(run_id, cfg).path


def test_policy_from_the_registry_must_be_compatible(client, cfg, finished_run):
    registry.register_model(client, finished_run("start"), "begin", 1.0, True)
    registry.register_model(client, finished_run("scorer", method="reward"), "begin-reward", 1.0, True)

    def spec(role, source):
        return RunSpec(changed(f"output_dir={cfg.output_dir}"), [], role, source)

    assert dependencies.resolve_explicit(spec("policy", "models:/begin@champion")).name == "start"
    assert dependencies.resolve_explicit(spec("reward", "models:/begin-reward@champion")).name == "scorer"
    with pytest.raises(MannersError, match="is a run of method=reward: sft or"):
        dependencies.resolve_explicit(spec("policy", "models:/begin-reward@champion"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("models:/knwn@champion", "Did you mean 'models:/known@champion'?"),
        ("models:/known@champoin", "Did you mean 'models:/known@champion'?"),
        ("models:/known/99", "Did you mean 'models:/known/"),
        ("models:/known", "the registry knows models:/NAME@ALIAS and models:/NAME/VERSION."),
        ("models:/known/latest", "the registry knows models:/NAME@ALIAS and models:/NAME/VERSION."),
    ],
)
def test_unknown_registered_name_is_answered_with_the_nearest(client, cfg, finished_run, name, message):
    registry.register_model(client, finished_run(), "known", 1.0, True)
    assert message in error_of(cfg, name) and name in error_of(cfg, name)


def test_empty_registry_names_the_command_to_fill_it(tmp_path):
    cfg = changed(f"output_dir={tmp_path}")
    assert "First: python train.py register_model=true" in error_of(cfg, "models:/strictbot@champion")
    assert not list(tmp_path.iterdir())  # no store is created by looking


def test_foreign_registered_model_is_refused(client, cfg):
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "s3://bucket/model")
    assert "models:/theirs/1 is not the model of a run" in error_of(cfg, "models:/theirs/1")
