"""The networks and how they learn: torch, transformers, accelerate.

Imports none of the other rooms. Modules named ``config`` import no torch.
"""

import os

# Set before torch loads its OpenMP. Threads that spin for long while they wait stall each other as soon as anything
# else runs on the same cores; threads that sleep at once wake too slowly for small operations. A short spin is neither.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
