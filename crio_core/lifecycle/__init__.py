"""The lifecycles: one table a module, executed by `transitions`."""
