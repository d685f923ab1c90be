"""What `psycogreen.uwsgi` needs from the uWSGI that runs this process.

`engine` finds its async engine and unsafe options. `postfork` registers functions for
the processes that it forks. ``_ugreen.c`` saves Python's thread state when uGreen
switches between requests.
"""
