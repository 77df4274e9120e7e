# docker build --tag manners .                      # TORCH_INDEX: as of make setup; a URL that ends in /whl/cpu saves CUDA
# docker run --volume manners:/app/outputs manners                       # make run
# docker run --volume manners:/app/outputs manners make run ARGS="seed=2"
FROM python:3.12-slim

# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/* \
  && useradd --create-home --uid 1000 manners
WORKDIR /app
# WORKDIR and COPY may leave new folders to root, and pip writes to src/.
RUN mkdir -p conf outputs src/manners && chown -R manners:manners .
USER 1000

# The packages before the code: they are installed again only where these files have changed.
ARG TORCH_INDEX=
COPY --chown=1000:1000 Makefile pyproject.toml README.md LICENSE ./
COPY --chown=1000:1000 conf/constraints.txt conf/
COPY --chown=1000:1000 src/manners/__init__.py src/manners/
RUN make setup TORCH_INDEX="$TORCH_INDEX"

COPY --chown=1000:1000 . .
VOLUME /app/outputs
CMD ["make", "run"]
