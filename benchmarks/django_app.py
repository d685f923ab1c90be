"""The Django project for the benchmarks: its only view makes a query.

The environment variable DJANGO_WAY names the way to get a connection, DSN the database.
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django_ways import DJANGO_WAYS

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": DJANGO_WAYS[os.environ["DJANGO_WAY"]].database()},
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this benchmark only",
)


def query(request: HttpRequest) -> HttpResponse:
    """Make the smallest query."""
    with connection.cursor() as cursor:
        cursor.execute("select 1")
        answer = str(cursor.fetchone())
    # client.py needs the length, which one of Django's middlewares adds elsewhere.
    return HttpResponse(answer, headers={"Content-Length": str(len(answer))})


urlpatterns = [path("query", query)]
app = get_wsgi_application()
