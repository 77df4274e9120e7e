"""How often a judge errs on labeled replies, and rates that are corrected for it (Rogan and Gladen 1978)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manners.data.files import file_rows
from manners.errors import MannersError
from manners.evaluation.judges import Judge, JudgedReply
from manners.evaluation.stats import Estimate, proportion

RESAMPLES = 4000
LEAST_INFORMATIVE = 0.1  # of sensitivity + specificity - 1: below it, a corrected rate would say nothing


@dataclass(frozen=True)
class LabeledReply:
    """A reply with the verdict of people or models that labeled it; ``ends`` is false for one that was cut off."""

    reply: JudgedReply
    ends: bool
    fits: bool


@dataclass(frozen=True)
class JudgeErrors:
    """How many labeled replies that fit, and that do not, a judge recognized."""

    found: int  # of the fitting
    fitting: int
    rejected: int  # of the others
    others: int

    @property
    def sensitivity(self) -> Estimate:
        return proportion(self.found, self.fitting)

    @property
    def specificity(self) -> Estimate:
        return proportion(self.rejected, self.others)

    def corrected(self, passed: float, total: int, seed: int = 0) -> Estimate | None:
        """The rate of fitting replies where the judge passed ``passed`` of ``total``; None where it tells too little.

        (rate + specificity - 1) / (sensitivity + specificity - 1), cut to [0, 1]. The interval has the 2.5 and 97.5
        percentiles over draws of all three rates from their posteriors under Jeffreys' prior, so that it holds the
        uncertainty of few labels, too. It assumes that the judge errs on these replies as on the labeled ones: where it
        passes fewer than it would pass by mistake, that is not so, and there is no corrected rate.
        """
        rng = np.random.default_rng(seed)
        counts = ((passed, total), (self.found, self.fitting), (self.rejected, self.others))
        draws = [rng.beta(k + 0.5, n - k + 0.5, RESAMPLES) for k, n in counts]
        rate, sensitivity, specificity = (k / n for k, n in counts)
        if sensitivity + specificity - 1 < LEAST_INFORMATIVE or rate < 1 - specificity:
            return None
        informative = draws[1] + draws[2] - 1 > LEAST_INFORMATIVE
        values = np.clip((draws[0] + draws[2] - 1) / np.where(informative, draws[1] + draws[2] - 1, np.nan), 0, 1)
        low, high = np.nanpercentile(values, [2.5, 97.5])
        value = float(np.clip((rate + specificity - 1) / (sensitivity + specificity - 1), 0, 1))
        return Estimate(value, min(float(low), value), max(float(high), value))


def measure_errors(judge: Judge, labeled: Sequence[LabeledReply]) -> JudgeErrors:
    """The judge on labeled replies, of which some fit and some do not."""
    verdicts = judge([row.reply for row in labeled])
    passed = [verdict.fits and row.ends for verdict, row in zip(verdicts, labeled, strict=True)]
    fits = [row.fits for row in labeled]
    return JudgeErrors(
        found=sum(p and f for p, f in zip(passed, fits, strict=True)),
        fitting=sum(fits),
        rejected=sum(not p and not f for p, f in zip(passed, fits, strict=True)),
        others=len(fits) - sum(fits),
    )


def read_labels(file: Path) -> list[LabeledReply]:
    """The labeled replies of a file on which all labels agree. Raises MannersError for a row that is none."""
    labeled = []
    for source, row in file_rows(file, file.name, "auto", "none"):
        try:
            verdicts = {bool(label["fits"]) for label in row["labels"]}
            reply = JudgedReply(row["prompt"], row["reply"], row["category"], row.get("value"))
            ends = bool(row["ends"])
        except (TypeError, KeyError) as error:
            raise MannersError(f"{source}: a labeled reply lacks {error}.") from None
        if len(verdicts) == 1:
            labeled.append(LabeledReply(reply, ends, verdicts.pop()))
    if len({row.fits for row in labeled}) < 2:
        raise MannersError(f"{file}: there must be replies that fit, and replies that do not.")
    return labeled
