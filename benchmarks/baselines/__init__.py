"""What users would write themselves: from the equations, and with the layers of ``torch.nn``.

Both take tokens (T, B) and a state, and give logits (T, B, V) and the next state, as our models do.
"""
