"""Make a registry version of the model."""
