# The image of a job's pods. What it builds is `make setup`, as on any other machine:
#
#     docker build -t registry.example.org/slipway:0.1.0 .
#
# Nothing secret goes in: the token of Ray and all keys come from Secrets when a pod starts.
FROM python:3.11-slim-bookworm

# make, git: what the README asks for. g++: DeepSpeed builds its communication op where it first needs it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make git g++ \
    && rm -rf /var/lib/apt/lists/*

RUN groupadd --gid 1000 slipway && useradd --uid 1000 --gid slipway --create-home slipway
WORKDIR /opt/slipway
RUN chown slipway:slipway /opt/slipway
USER 1000:1000

COPY --chown=slipway:slipway . .
RUN make setup && rm -rf ~/.cache

ENV PATH=/opt/slipway/.venv/bin:$PATH \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
CMD ["slipway", "--help"]
