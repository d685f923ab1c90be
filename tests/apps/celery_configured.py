"""A Celery application whose configuration names the pool."""

from celery_app import app

app.conf.worker_pool = "gevent"
app.conf.include = ["psycogreen.integrations.celery"]
