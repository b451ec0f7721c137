"""Render what serves the champion: three processes on a laptop, three InferenceServices on a cluster."""
