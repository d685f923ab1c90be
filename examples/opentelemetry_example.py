"""Queries under gevent, traced by OpenTelemetry.

python opentelemetry_example.py
"""

from gevent import monkey

monkey.patch_all()

import psycogreen

psycogreen.patch_psycopg()

import gevent
import psycopg2
from opentelemetry import trace
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
# With psycopg2-binary it does not recognize psycopg2 by itself.
Psycopg2Instrumentor().instrument(skip_dep_check=True)


def query(n: int) -> None:
    """Run a query that takes its time."""
    connection = psycopg2.connect("")
    connection.cursor().execute("select %s, pg_sleep(0.2)", (n,))
    connection.close()


gevent.joinall([gevent.spawn(query, n) for n in range(10)], raise_error=True)
print("spans:", len(exporter.get_finished_spans()))
print("waits:", psycogreen.status().waits >= 20)
