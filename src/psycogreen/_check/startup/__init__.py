"""The folder with `sitecustomize` that ``check`` puts first on a server's Python path."""
