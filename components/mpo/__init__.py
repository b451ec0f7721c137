"""Train on preference pairs, offline."""
