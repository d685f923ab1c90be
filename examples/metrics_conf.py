"""gunicorn's configuration for several workers whose figures are collected."""

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from prometheus_client import multiprocess

worker_class = "psycogreen.integrations.gevent_worker.GeventWorker"


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Leave a worker that has ended out of what is under way."""
    multiprocess.mark_process_dead(worker.pid)
