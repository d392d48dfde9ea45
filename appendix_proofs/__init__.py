"""Executable proofs of the mathematics that gimli_core runs on.

Each module states a theorem in its docstring and proves it in `prove()`, which returns
the proved statements and raises AssertionError at the first that fails.

    python -m appendix_proofs          every proof, as a table of statements
    python -m appendix_proofs.adam     one of them
"""

PROOFS = (
    "sgd",
    "momentum",
    "nesterov",
    "adagrad",
    "adam",
    "amsgrad",
    "adamw",
    "nadam",
    "radam",
    "adamax",
    "adadelta",
    "rmsprop",
    "asgd",
    "rprop",
    "lion",
    "sparse_adam",
    "lamb",
    "adafactor",
    "muon",
    "augmented_state",
    "seen_loss",
    "zero_gradient",
    "requirements",
    "printed_training",
    "printed_requirements",
    "printed_paths",
    "printed_algorithm",
    "printed_prose",
    "printed_appendix",
)
