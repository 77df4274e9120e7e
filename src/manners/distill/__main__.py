"""``python -m manners.distill``: write the dataset of ``train.py dataset=distilled``."""

from manners.cli.main import main
from manners.config.compose import RunSpec


def distill(spec: RunSpec) -> None:
    from manners import distill

    distill.write_distilled(spec.cfg)


if __name__ == "__main__":
    main("distill", distill)
