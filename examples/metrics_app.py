"""The Flask application of flask_app.py, with figures for Prometheus at /metrics.

One worker::

    gunicorn -k psycogreen.integrations.gevent_worker.GeventWorker metrics_app:app
    curl http://127.0.0.1:8000/metrics

Several workers, of which each answers for all::

    export PROMETHEUS_MULTIPROC_DIR=$(mktemp -d)
    gunicorn -c metrics_conf.py -w 4 metrics_app:app
"""

import os

from flask import Response
from flask_app import app
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from psycogreen.integrations import metrics

__all__ = ["app"]

metrics.register()


@app.get("/metrics")
def figures() -> Response:
    """Answer with the figures of this process, or of all workers."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
