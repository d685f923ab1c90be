"""Install psycogreen in a server: one module for each, named in its command line."""
