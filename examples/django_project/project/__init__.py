"""A Django project with nothing green in it."""
