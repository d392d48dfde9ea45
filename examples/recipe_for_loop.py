"""An outer loop as a plain `for` around gimli.unroll: MAML on sine waves, one vectorised call an outer step.

python examples/recipe_for_loop.py         # about 5 s
"""

import argparse

import sines
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outer-steps", type=int, default=300)
    options = parser.parse_args()

    network = sines.network()
    problem = sines.problem(network)
    meta_optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(options.outer_steps):
        loss = sines.loss_after_adaptation(network, problem, sines.train_tasks(step))
        meta_optimizer.zero_grad()
        loss.backward()  # lines 8-15 of Algorithm 1
        meta_optimizer.step()  # line 16
        if step % 100 == 0:
            print(f"outer step {step:4}: loss after adaptation {loss.item():.3f}")
    with torch.no_grad():
        print(f"on 100 new waves {sines.loss_after_adaptation(network, problem, sines.test_tasks(0)).item():.3f}")


if __name__ == "__main__":
    main()
