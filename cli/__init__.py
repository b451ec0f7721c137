"""The ``fovea`` command: thin, on top of everything. Nothing imports it."""
