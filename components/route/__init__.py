"""Train the router that picks a tile's resolution. Described by profiles, not built yet."""
