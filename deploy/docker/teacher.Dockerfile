# The teacher. From the repository's root:
#   docker build --file deploy/docker/teacher.Dockerfile --tag rookery-teacher:0.1.0 .
# On a GPU:
#   docker build --file deploy/docker/teacher.Dockerfile --tag rookery-teacher:0.1.0-cuda \
#     --build-arg VARIANT=cuda --build-arg TORCH_INDEX= .
# The CUDA that torch's wheel is made for must fit the base image below and the nodes' driver: look which it is, and take
# another index if it does not. With ROOKERY_DEVICE=cuda a process that finds none says so and ends.
# EXTRAS may name more of pyproject.toml's: teacher,openai for a model at an endpoint. vLLM is not tried in these images.
ARG VARIANT=cpu

FROM python:3.12-slim-bookworm AS cpu

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS cuda
RUN apt-get update \
  && apt-get install --yes --no-install-recommends python3=3.12.* python3-venv=3.12.* \
  && rm -rf /var/lib/apt/lists/*

FROM ${VARIANT} AS build
ARG EXTRAS=teacher
# Where torch without CUDA is; empty for PyPI's, which has CUDA's libraries with it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${TORCH_INDEX}
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY shared shared
COPY services services
RUN python3 -m venv /opt/rookery \
  && /opt/rookery/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM ${VARIANT}
RUN groupadd --gid 10001 rookery \
  && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin rookery \
  && install --directory --owner 10001 --group 10001 /var/cache/rookery /var/cache/huggingface
COPY --from=build /opt/rookery /opt/rookery
# Nothing is written outside of /tmp, ROOKERY_CACHE_FOLDER and HF_HOME, so the root may be read-only.
ENV PATH=/opt/rookery/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
EXPOSE 7072
ENTRYPOINT ["rookery-teacher"]
CMD ["serve"]
