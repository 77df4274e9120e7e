"""A search of the space by Optuna's ask and tell. Its study is a journal file, so that a killed search resumes."""

import zlib
from pathlib import Path

import optuna
from omegaconf import DictConfig
from optuna.trial import Trial, TrialState

from manners.config.schema import OBJECTIVE
from manners.sweep.space import Choice, Dimension, condition_holds
from manners.tracking.pruning import STUDY, journal_storage, make_pruner

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
RETRY_OF = "retry_of"  # attribute of a trial: the number of the failed or killed trial that it repeats

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search:
    """Proposes jobs until ``sweep.trials`` have ended. Trials that failed or were killed are proposed again, first."""

    def __init__(self, cfg: DictConfig, dimensions: list[Dimension], fixed: Choice, journal: Path):
        self.cfg, self.dimensions, self.fixed = cfg, dimensions, fixed
        self.study = optuna.create_study(
            storage=journal_storage(journal),
            study_name=STUDY,
            direction=OBJECTIVE[cfg.method.name][1],  # type: ignore[arg-type]
            pruner=make_pruner(cfg.sweep.pruner),
            load_if_exists=True,
        )
        self.trials: dict[int, Trial] = {}
        for trial in self.study.get_trials(states=[TrialState.RUNNING, TrialState.FAIL]):
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.number not in self.retried_trials():
                self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})

    def retried_trials(self) -> set[int]:
        """The numbers of the trials that another trial repeats."""
        return {t.user_attrs[RETRY_OF] for t in self.study.get_trials(deepcopy=False) if RETRY_OF in t.user_attrs}

    @property
    def num_proposed(self) -> int:
        """Trials so far; one that is proposed again counts once."""
        retried = self.retried_trials()
        trials = self.study.get_trials(deepcopy=False)
        return sum(t.state != TrialState.WAITING and t.number not in retried for t in trials)

    @property
    def num_remaining(self) -> int:
        """Trials that are still to be proposed."""
        return int(self.cfg.sweep.trials) - self.num_proposed

    def ended(self) -> list[Choice]:
        """The choices of the trials that ended before the search was resumed."""
        return [t.user_attrs["choice"] for t in self.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])]

    def ask(self) -> tuple[int, Choice]:
        """The next trial: the id by which its job reports to Optuna, and its choice.

        The sampler is made anew with a seed for each trial, so that a search that was killed and resumed proposes what
        it would have proposed otherwise.
        """
        seed = zlib.crc32(f"{self.cfg.seed}/{self.num_proposed}".encode())
        self.study.sampler = SAMPLERS[self.cfg.sweep.sampler](seed=seed)
        trial = self.study.ask()
        self.trials[trial._trial_id] = trial
        choice: Choice = {}
        for dimension in self.dimensions:
            if condition_holds(dimension, self.fixed | choice):
                choice[dimension.key] = suggest_value(trial, dimension)
        trial.set_user_attr("choice", choice)
        return trial._trial_id, choice

    def tell(self, trial_id: int, status: str, metric: float | None) -> None:
        """Tell Optuna how a trial ended."""
        state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(status, TrialState.FAIL)
        self.study.tell(self.trials[trial_id], metric if state == TrialState.COMPLETE else None, state=state)


def suggest_value(trial: Trial, dimension: Dimension) -> str:
    """Optuna's suggestion for a dimension, as it would be typed."""
    if not dimension.interval:
        return str(trial.suggest_categorical(dimension.key, dimension.values))
    low, high = map(float, dimension.values)
    if dimension.integer:
        return str(trial.suggest_int(dimension.key, int(low), int(high), log=dimension.log))
    # No run is sensitive to more than four digits.
    return f"{trial.suggest_float(dimension.key, low, high, log=dimension.log):.4g}"
