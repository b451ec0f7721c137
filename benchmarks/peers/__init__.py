"""Peers that cannot be installed, re-implemented from their published descriptions; each says from which."""
