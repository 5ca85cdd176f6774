"""Everything about images that can be decided without touching the world: names, documents, registries, credentials."""
