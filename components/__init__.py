"""The pipeline steps, one folder each, and the runner they share.

Imports model, scoring and planning. Only ``tracking`` touches MLflow; only ``*/component.py`` imports kfp.
"""
