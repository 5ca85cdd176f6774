"""The container monitor: one small process per container that outlives the server.

It keeps the terminal and pipes, writes the log, reaps the container, records its exit and serves attach. It imports the
standard library alone, and of that only modules that are cheap to load: see `docs/monitor.md` for what a module costs.
"""
