# The engine: sampler, judge and reward service, one image for the three.
#
#   docker build --file docker/engine.Dockerfile --target cpu --tag ghcr.io/kube-rlaif/rlaif-engine:0.1.0 \
#     --build-arg TORCH_CPU_INDEX_URL=… .
#   docker build --file docker/engine.Dockerfile --target gpu --tag ghcr.io/kube-rlaif/rlaif-engine:0.1.0-gpu .
#
# The arguments, and how to pin bases by digest and build from a mirror: docs/images.md.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.32.0

# The pip that fills /opt/rlaif lies outside it: no image holds a build tool.
FROM ${BASE_IMAGE} AS python
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/rlaif
WORKDIR /src
COPY constraints.txt ./

# The same lines in engine, trainer and pipelines: built once, and one layer of all three. Tests and headers stay out.
FROM python AS torch
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TORCH_CPU_INDEX_URL
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/rlaif/bin/python install --constraint constraints.txt \
      ${TORCH_CPU_INDEX_URL:+--extra-index-url "$TORCH_CPU_INDEX_URL"} peft safetensors torch transformers \
    && /opt/rlaif/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda and "this torch is for CUDA, 5 GB more: \
give --build-arg TORCH_CPU_INDEX_URL, an index that has builds for CPUs")' \
    && find /opt/rlaif \( -path '*/tests/*' -o -path '*/torch/test/*' -o -path '*/torch/include/*' \
      -o -path '*/torch/bin/*' ! -name torch_shm_manager \) -delete

FROM python AS wheel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY pipelines pipelines
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip wheel --no-deps --wheel-dir /dist .

# What torch's layer lacks.
FROM torch AS installed
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY --from=wheel /dist /dist
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/rlaif/bin/python install --root /opt/added --constraint constraints.txt \
      "$(echo /dist/*.whl)[engine,openai,s3]" \
    && find /opt/added -path '*/tests/*' -delete

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

# vLLM's own image has CUDA, torch and the compiler that vLLM needs at run time; ours goes beside it.
FROM ${VLLM_IMAGE} AS gpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
USER 0
RUN groupadd --gid 65532 rlaif \
    && useradd --uid 65532 --gid rlaif --no-create-home --home-dir /var/lib/rlaif --shell /usr/sbin/nologin rlaif \
    && install --directory --owner rlaif --group rlaif --mode 0770 /rlaif /var/lib/rlaif
COPY --from=wheel /dist /dist
# vLLM is in the list so that pip keeps to what it needs; what its image has and fits stays as it is.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m pip install --no-cache-dir --break-system-packages "$(echo /dist/*.whl)[openai,s3,vllm]" \
    && python3 -c 'import torch; assert torch.version.cuda, "torch for CUDA was replaced"' \
    && { command -v python || ln -s "$(command -v python3)" /usr/local/bin/python; }
# hadolint ignore=DL3064
ENV HOME=/var/lib/rlaif \
    USER=rlaif \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false
WORKDIR /var/lib/rlaif
USER 65532:65532
ENTRYPOINT []
EXPOSE 50051 50052 9090
# One image, three services: rlaif.sampler, rlaif.judge, rlaif.reward.
CMD ["python", "-m", "rlaif.judge", "--config", "/etc/rlaif/judge.yaml"]

ARG VERSION=0.1.0
ARG REVISION
ARG SOURCE=https://github.com/kube-rlaif/kube-rlaif
ENV RLAIF_REVISION=${REVISION}
LABEL org.opencontainers.image.title="rlaif-engine" \
      org.opencontainers.image.description="kube-rlaif: policy sampler, AI judge and reward service on vLLM" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS cpu
COPY --from=torch /opt/rlaif /opt/rlaif
COPY --from=installed /opt/added/opt/rlaif /opt/rlaif
USER 65532:65532
EXPOSE 50051 50052 9090
# One image, three services: rlaif.sampler, rlaif.judge, rlaif.reward.
CMD ["python", "-m", "rlaif.judge", "--config", "/etc/rlaif/judge.yaml"]

ARG VERSION=0.1.0
ARG REVISION
ARG SOURCE=https://github.com/kube-rlaif/kube-rlaif
ENV RLAIF_REVISION=${REVISION}
LABEL org.opencontainers.image.title="rlaif-engine" \
      org.opencontainers.image.description="kube-rlaif: policy sampler, AI judge and reward service on transformers" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
