"""The application that a server runs.

Run it, and ask it for a query of 300 ms::

    gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf project.wsgi
    curl http://127.0.0.1:8000/sleep/300
"""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
application = get_wsgi_application()
