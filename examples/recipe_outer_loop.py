"""The same MAML with gimli.OuterLoop: evaluation, early stopping, a log, and a run that survives its process.

Kill it at any moment and start it again with the same --out: it goes on to the same bits.

    python examples/recipe_outer_loop.py --out run         # about 10 s
"""

import argparse

import sines
import torch

import gimli_core as gimli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outer-steps", type=int, default=300)
    parser.add_argument("--out", default=None, help="a directory for checkpoints and the log")
    options = parser.parse_args()

    network = sines.network()
    problem = sines.problem(network)

    def inner(phi, drawn):
        support, query = drawn
        return {"theta_0": phi, "train_batches": lambda j: support, "val_batch": query}

    def on_new_waves(step):
        with torch.no_grad():
            return sines.loss_after_adaptation(network, problem, sines.test_tasks(0))

    phi = dict(network.named_parameters())
    meta_optimizer = torch.optim.Adam(phi.values(), lr=1e-3)
    loop = gimli.OuterLoop(
        gimli.Unrolled(problem, phi, inner, steps=sines.STEPS, tasks=sines.TASKS),
        sines.train_tasks,
        meta_optimizer,
        steps=options.outer_steps,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(meta_optimizer, options.outer_steps),
        clip=10.0,
        evaluate=on_new_waves,
        evaluate_every=50,
        early_stopping=gimli.EarlyStopping(patience=5),
        out=options.out,
    )
    for record in loop:
        if "evaluation" in record:
            print(f"outer step {record['step']:4}: on 100 new waves {record['evaluation']['value']:.3f}")


if __name__ == "__main__":
    main()
