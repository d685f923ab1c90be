"""Django's commands, green with PSYCOGREEN=gevent.

python manage.py check --database default
PSYCOGREEN=gevent python -m gevent.monkey manage.py ...
"""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
execute_from_command_line(sys.argv)
