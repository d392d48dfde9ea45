"""Few-shot learning: episodes, networks, and the methods of three families, one file each.

Every method is an `nn.Module` with `loss(episode)` and `predict(support_x, support_y, query_x)` (`method.py`). One loop
trains them all, `OuterLoop`, and one function evaluates them, `evaluate`.
"""
