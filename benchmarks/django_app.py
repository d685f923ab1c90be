"""The Django project that is served: its one view makes a query.

The variable DJANGO_WAY says how it comes to a connection, DSN where the server is.
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
    """Make the least query there is."""
    with connection.cursor() as cursor:
        cursor.execute("select 1")
        answer = str(cursor.fetchone())
    # The client looks for the length, which a middleware of Django's adds elsewhere.
    return HttpResponse(answer, headers={"Content-Length": str(len(answer))})


urlpatterns = [path("query", query)]
app = get_wsgi_application()
