# The coordinator: its servers, its relay, its worker and its migrations; with it comes the command `rookery`.
# From the repository's root:
#   docker build --file deploy/docker/coordinator.Dockerfile --tag rookery-coordinator:0.1.0 .
FROM python:3.12-slim-bookworm AS build
ARG EXTRAS=coordinator
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY shared shared
COPY services services
RUN python3 -m venv /opt/rookery \
  && /opt/rookery/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.12-slim-bookworm
RUN groupadd --gid 10001 rookery \
  && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin rookery \
  && install --directory --owner 10001 --group 10001 /var/cache/rookery
COPY --from=build /opt/rookery /opt/rookery
# Nothing is written outside of /tmp and ROOKERY_CACHE_FOLDER, so the root may be read-only.
ENV PATH=/opt/rookery/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
EXPOSE 7070 7071
ENTRYPOINT ["rookery-coordinator"]
CMD ["serve"]
