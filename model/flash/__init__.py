"""The InternVL3.5 network: ViT, pixel unshuffle, projector and language model, with its processor."""
