"""What ``check`` puts first on the path of a server's Python: `sitecustomize`."""
