"""Train the router that picks a tile's resolution."""
