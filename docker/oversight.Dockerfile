# Oversight: the ledger and label quality. No torch.
#
#   docker build --file docker/oversight.Dockerfile --tag ghcr.io/kube-rlaif/rlaif-oversight:0.1.0 .
#
# The arguments, and how to pin bases by digest and build from a mirror: docs/images.md.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# The pip that fills /opt/rlaif lies outside it: no image holds a build tool.
FROM ${BASE_IMAGE} AS python
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/rlaif
WORKDIR /src
COPY constraints.txt ./

FROM python AS wheel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY pipelines pipelines
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip wheel --no-deps --wheel-dir /dist .

FROM python AS installed
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY --from=wheel /dist /dist
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/rlaif/bin/python install --constraint constraints.txt \
      "$(echo /dist/*.whl)[oversight]" \
    && find /opt/rlaif -path '*/tests/*' -delete

# Compiled files come with the packages, so a read-only root is enough: what is written goes to HOME and /tmp.
FROM ${BASE_IMAGE} AS runtime
RUN groupadd --gid 65532 rlaif \
    && useradd --uid 65532 --gid rlaif --no-create-home --home-dir /var/lib/rlaif --shell /usr/sbin/nologin rlaif \
    && install --directory --owner rlaif --group rlaif --mode 0770 /rlaif /var/lib/rlaif
# Threads that wait sleep soon: several processes share few cores.
# hadolint ignore=DL3064
ENV PATH=/opt/rlaif/bin:$PATH \
    HOME=/var/lib/rlaif \
    USER=rlaif \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=10000 \
    TOKENIZERS_PARALLELISM=false
WORKDIR /var/lib/rlaif

FROM runtime AS oversight
COPY --from=installed /opt/rlaif /opt/rlaif
USER 65532:65532
EXPOSE 50051 50052 9090
CMD ["python", "-m", "rlaif.oversight", "--config", "/etc/rlaif/oversight.yaml"]

ARG VERSION=0.1.0
ARG REVISION
ARG SOURCE=https://github.com/kube-rlaif/kube-rlaif
ENV RLAIF_REVISION=${REVISION}
LABEL org.opencontainers.image.title="rlaif-oversight" \
      org.opencontainers.image.description="kube-rlaif: label ledger and label quality" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
