"""What installs psycogreen in a server: one module for each, named in its command."""
