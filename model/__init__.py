"""The networks and how they learn: torch, transformers, accelerate.

Imports none of the other rooms. Modules named ``config`` import no torch.
"""
