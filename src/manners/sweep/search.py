"""A search of the space by Optuna's ask and tell. Its memory is a journal file, so that a killed search goes on."""

import zlib
from pathlib import Path

import optuna
from omegaconf import DictConfig
from optuna.trial import Trial, TrialState

from manners.config.schema import OBJECTIVE
from manners.sweep.space import Choice, Dimension, condition_holds
from manners.tracking.pruning import STUDY, journal_storage, make_pruner

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search:
    """Proposes jobs until ``sweep.trials`` have ended. What failed or was killed is proposed again, first."""

    def __init__(self, cfg: DictConfig, dimensions: list[Dimension], given: Choice, journal: Path):
        self.cfg, self.dimensions, self.given = cfg, dimensions, given
        self.study = optuna.create_study(
            storage=journal_storage(journal),
            experiment_name=STUDY,
            direction=OBJECTIVE[cfg.method.name][1],  # type: ignore[arg-type]
            pruner=make_pruner(cfg.sweep.pruner),
            load_if_exists=True,
        )
        self.asked: dict[int, Trial] = {}
        for trial in self.study.get_trials(states=[TrialState.RUNNING, TrialState.FAIL]):
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.number not in self.tried_again():
                self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})

    def tried_again(self) -> set[int]:
        return {t.user_attrs["again"] for t in self.study.get_trials(deepcopy=False) if "again" in t.user_attrs}

    @property
    def proposed(self) -> int:
        """Trials so far. One that is proposed once more counts once."""
        again = self.tried_again()
        trials = self.study.get_trials(deepcopy=False)
        return sum(t.state != TrialState.WAITING and t.number not in again for t in trials)

    @property
    def left(self) -> int:
        return int(self.cfg.sweep.trials) - self.proposed

    def ended(self) -> list[Choice]:
        """What was tried when the search was at work before."""
        return [t.user_attrs["choice"] for t in self.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])]

    def ask(self) -> tuple[int, Choice]:
        """The id by which the job reports to its trial, and what it shall try.

        The sampler is made anew with a seed of the trial's own: so a search that was killed and went on proposes what
        it would have proposed otherwise.
        """
        seed = zlib.crc32(f"{self.cfg.seed}/{self.proposed}".encode())
        self.study.sampler = SAMPLERS[self.cfg.sweep.sampler](seed=seed)
        trial = self.study.ask()
        self.asked[trial._trial_id] = trial
        choice: Choice = {}
        for d in self.dimensions:
            if condition_holds(d, self.given | choice):
                choice[d.key] = suggest_value(trial, d)
        trial.set_user_attr("choice", choice)
        return trial._trial_id, choice

    def tell(self, trial_id: int, status: str, metric: float | None) -> None:
        state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(status, TrialState.FAIL)
        self.study.tell(self.asked[trial_id], metric if state == TrialState.COMPLETE else None, state=state)


def suggest_value(trial: Trial, d: Dimension) -> str:
    if not d.interval:
        return str(trial.suggest_categorical(d.key, d.values))
    low, high = map(float, d.values)
    if d.whole:
        return str(trial.suggest_int(d.key, int(low), int(high), log=d.log))
    return f"{trial.suggest_float(d.key, low, high, log=d.log):.4g}"  # four digits tell more than a run can
