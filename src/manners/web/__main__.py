"""``python -m manners.web run=RUN``: compare models and vote on their replies in a browser."""

from manners.cli.main import main
from manners.config.compose import RunSpec


def web(spec: RunSpec) -> None:
    from manners import web

    web.run_web(spec.cfg)


if __name__ == "__main__":
    main("web", web)
