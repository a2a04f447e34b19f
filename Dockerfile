# One image for RunPod's pods and for its serverless endpoints; docs/image.md says what is in it, and why.

# Debian, for it has Python 3.11. A digest pins it to the byte: --build-arg BASE=debian@sha256:…
ARG BASE=debian:bookworm-20260824-slim
FROM ${BASE}

# gcc and the headers: Triton compiles a launcher for each of its kernels when it first runs. The base is pinned, and Debian's own
# packages are not: of a stable release they change for security only, and Debian then takes the older ones away.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --uid 1000 --user-group --create-home --shell /usr/sbin/nologin worker

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# The largest layer by far, apart from the others, so that a change in those does not have it fetched again.
# tests/unit/test_dockerfile.py compares the version with requirements.txt.
ARG TORCH=2.13.0
RUN pip install --no-cache-dir torch==${TORCH}

WORKDIR /opt/ourvidz

COPY requirements.txt requirements-serverless.txt ./
# runpod brings 115 MB along; whoever wants pods only may build without: --build-arg REQUIREMENTS=requirements.txt
ARG REQUIREMENTS=requirements-serverless.txt
RUN pip install --no-cache-dir --requirement ${REQUIREMENTS}

COPY models/tiny-sdxl models/tiny-sdxl
COPY deploy/image/entrypoint.py worker.py handler.py ./
COPY supabase/migrations supabase/migrations
COPY ourvidz_sdxl ourvidz_sdxl
RUN python -m compileall -q .

# MODEL_PATH is where a pod's volume has the model. NVIDIA_… is for hosts that show no GPU without being asked.
ENV PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MODEL_PATH=/workspace/models/sdxl-lustify/lustifySDXLNSFWSFW_v20.safetensors \
    HTTP_PORT=8000 \
    LOG_FORMAT=json

# For whoever runs it with Docker; RunPod does not ask.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['HTTP_PORT'] + '/health')"]

# It starts as root, since RunPod mounts its volumes as root's and has no step before this one that could hand them over.
# entrypoint.py does that, and becomes the user `worker` before the worker starts. Python is process 1 from first to last.
ENTRYPOINT ["python", "/opt/ourvidz/entrypoint.py"]
