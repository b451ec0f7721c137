"""Sizing, throughput and cost: pure Python, imports none of the other rooms."""
