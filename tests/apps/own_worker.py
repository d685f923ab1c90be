"""Workers as other packages make them: derived from gunicorn's."""

from gunicorn.workers.ggevent import GeventPyWSGIWorker


class Worker(GeventPyWSGIWorker):
    """A gevent worker of somebody's own."""
