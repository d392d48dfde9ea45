"""`gimli demo`: a small network's hyperparameters, learned on real data by meta-gradients."""
