"""Push a dataset to the DVC remote and say what stands for it."""
