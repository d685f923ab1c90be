"""The folder that ``check`` puts first on a server's Python path: `sitecustomize`."""
