"""One script and one dated result file per figure we claim."""
