"""What users would write themselves: a plain training step, and the models with the layers of ``torch.nn``.

A model takes tokens (T, B) and a state, and gives logits (T, B, V) and the next state, as ours do.
"""
