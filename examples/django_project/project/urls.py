"""What the project answers."""

from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path


def sleep(request: HttpRequest, milliseconds: int) -> JsonResponse:
    """Let PostgreSQL take its time; tell which of its processes did."""
    with connection.cursor() as cursor:
        query = "select pg_backend_pid(), pg_sleep(%s)"
        cursor.execute(query, [milliseconds / 1000])
        return JsonResponse({"backend": cursor.fetchone()[0]})


urlpatterns = [path("sleep/<int:milliseconds>", sleep)]
