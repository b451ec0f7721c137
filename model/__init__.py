"""The networks and how they learn: torch, transformers, accelerate.

Imports none of the other rooms. Modules named ``config`` import no torch.
"""

import os

# Set before torch loads its OpenMP: threads that spin while they wait stall each other as
# soon as anything else runs on the same cores; sleeping ones cost nothing measurable on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
