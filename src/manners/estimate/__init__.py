"""``estimate=true``: whether a run fits into memory and how long it takes, counted and measured; nothing is trained."""

from manners.estimate.answer import report as report
