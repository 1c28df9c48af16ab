# syntax=docker/dockerfile:1
# docker build -t hotswap .
# docker run -p 8000:8000 -e HOTSWAP_API_KEY=... -e HOTSWAP_ADMIN_KEY=... hotswap
#
# TORCH_INDEX_URL: one more index to look for torch in: PyTorch's index of CPU builds gives the smallest image, one of
#   its CUDA indexes a build for that CUDA. A build with a local version (2.13.0+cpu) is preferred to the plain one.
#   Empty: the index that pip uses anyway.
# WITH_BASE=0 leaves the default base model (270 MB) out of the image, for serving another one.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS runtime
# the OpenMP and C++ runtimes that bitsandbytes is linked against
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libstdc++6 && rm -rf /var/lib/apt/lists/*

FROM runtime AS build
# the native kernels' compiler; the image that is served from has none
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
RUN python -m venv /opt/hotswap
ENV PATH=/opt/hotswap/bin:$PATH
WORKDIR /src
# the heavy layers depend on the requirements only, so a change of code does not download torch again
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml setup.py README.md LICENSE ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; more = p["optional-dependencies"]; \
print("\n".join(p["dependencies"] + more["postgresql"] + more["s3"]))' \
      > /tmp/requirements.txt \
    && pip install -c constraints.txt -r /tmp/requirements.txt
COPY adapters adapters
COPY bases bases
COPY hotkernels hotkernels
COPY hotswap hotswap
COPY server server
COPY trainer trainer
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

FROM build AS base-model
ARG WITH_BASE=1
ENV HOTSWAP_CACHE=/var/cache/hotswap
RUN mkdir -p "$HOTSWAP_CACHE" && if [ "$WITH_BASE" = 1 ]; then hotswap base import; fi

FROM runtime
RUN useradd --system --user-group --uid 10001 --create-home hotswap && install -d -o hotswap -g hotswap /data
COPY --from=build /opt/hotswap /opt/hotswap
COPY --from=base-model --chown=hotswap:hotswap /var/cache/hotswap /var/cache/hotswap
ENV PATH=/opt/hotswap/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOTSWAP_CACHE=/var/cache/hotswap \
    HOTSWAP_DATA_DIR=/data \
    HOTSWAP_HOST=0.0.0.0 \
    HOTSWAP_PORT=8000
USER hotswap
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# /health says that the server and its engine live; /ready (for an orchestrator) that it can serve
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"HOTSWAP_PORT\"]}/health', timeout=4)"]
ENTRYPOINT ["hotswap"]
CMD ["serve"]
