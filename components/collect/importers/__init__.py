"""Readers of other people's data: one module per format gives ``Record``s, ``rows.py`` makes checked rows of them.

A reader streams: it holds one record (or one batch of a table) at a time. It follows no path out of the source's
directory and fetches nothing. What cannot be a row stays as a refusal with its reason and its place. Imports no torch.
"""
