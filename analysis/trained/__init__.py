"""How the models of finished runs behave, from the files that ``launch.py behaviour`` has left in the runs' folders.

Reads, draws and tells; computes nothing of a model's own and needs no torch.
"""
