"""Check, redact, deduplicate, decontaminate and mix rows by a recipe; split them by stage."""

import os

# Read by Daft when it is imported, whichever module imports it first: no usage reports, no progress bars of its own.
os.environ["DO_NOT_TRACK"] = "1"
os.environ["DAFT_PROGRESS_BAR"] = "0"
