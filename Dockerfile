# syntax=docker/dockerfile:1
# One image for every role: web, worker, sweeper, webhooks, migrate. It runs as a user without rights.
#
#   docker build -t odproject .                                      CUDA build of torch
#   docker build -t odproject --build-arg TORCH_INDEX_URL=<index> .  for example PyTorch's index
#                                                                    of CPU builds, 5 GB smaller
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.txt /tmp/requirements.txt
# torch first and from its own index, so that the rest finds it installed.
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
      pip install --index-url "$TORCH_INDEX_URL" "$(grep -oE '^torch==[0-9.]+' /tmp/requirements.txt)"; \
    fi
RUN pip install -r /tmp/requirements.txt

FROM python:${PYTHON_VERSION}-slim
RUN useradd --create-home --uid 10001 od && install -d -o od -g od /data
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY manage.py LICENSE ./
COPY odproject odproject
COPY accounts accounts
COPY billing billing
COPY datasets datasets
COPY inference inference
COPY templates templates
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    OD_DATA_DIR=/data \
    YOLO_AUTOINSTALL=false YOLO_OFFLINE=true YOLO_CONFIG_DIR=/data/ultralytics
USER od
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/livez', timeout=4)"
# A container that is started again keeps what a killed predecessor had half unpacked.
ENTRYPOINT ["sh", "-c", "rm -rf /tmp/od-*; exec \"$@\"", "--"]
CMD ["python", "-m", "odproject.serve", "--bind", "0.0.0.0:8080"]
