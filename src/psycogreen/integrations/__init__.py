"""Install psycogreen in a server: one module for each server, named in its command."""
