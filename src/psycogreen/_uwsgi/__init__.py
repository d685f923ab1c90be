"""What `psycogreen.uwsgi` needs from the uWSGI that runs this process.

`engine` tells which async engine it has and what is unsafe about it. ``_ugreen.c``
lets uGreen, which knows nothing of Python's threads, switch between requests.
"""
