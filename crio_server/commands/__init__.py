"""Subcommands of `crio`, one module each; nothing here is imported while the server runs, except by `main`."""
