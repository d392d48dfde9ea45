"""Learn a learning rate for each of J steps of SGD with momentum, on real handwritten digits.

The schedule is one tensor of shape [J]; its gradient is A_opt["lr"], one entry a step. What is learned is compared, on
rows that took no part, with the best of many constant learning rates.

    python examples/learned_schedule.py                  # needs scikit-learn; about 10 s
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import gimli_core as gimli

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outer-steps", type=int, default=60)
    parser.add_argument("--inner-steps", type=int, default=30, help="J")
    options = parser.parse_args()
    J = options.inner_steps

    torch.manual_seed(0)
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    x, order = (x / 16).float(), torch.randperm(len(y))
    train, val, test = ((x[rows], y[rows]) for rows in order.split([900, 450, 447]))

    def new_network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.SiLU(), torch.nn.Linear(32, 10))

    network = new_network()

    def loss(theta, phi_loss, batch):
        return cross_entropy(functional_call(network, theta, batch[0]), batch[1])

    def batches(seed):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(train[1]), (J, BATCH), generator=generator)
        return [(train[0][i], train[1][i]) for i in rows]

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(momentum=0.9))
    log_lr = torch.full((J,), -4.0, requires_grad=True)
    meta_optimizer = torch.optim.Adam([log_lr], lr=0.1)

    for step in range(options.outer_steps):
        # A new initialisation and new batches each time: a schedule for this network, not for one run of it.
        theta_0 = dict(new_network().named_parameters())
        met = gimli.unroll(problem, theta_0, batches(step), val, phi_opt={"lr": log_lr.exp()})
        meta_optimizer.zero_grad()
        met.backward()
        meta_optimizer.step()
        if step % 10 == 0:
            print(f"outer step {step:3}: validation loss {met.item():.4f}")

    def mean_loss(schedule, rows):
        """In plain torch.optim.SGD, over the same five new runs for every schedule."""
        losses = []
        for seed in range(5):
            torch.manual_seed(seed)
            parameters = dict(new_network().named_parameters())
            optimizer = torch.optim.SGD(parameters.values(), momentum=0.9)
            for lr, batch in zip(schedule, batches(10_000 + seed), strict=True):
                optimizer.param_groups[0]["lr"] = lr
                optimizer.zero_grad()
                loss(parameters, {}, batch).backward()
                optimizer.step()
            with torch.no_grad():
                losses.append(loss(parameters, {}, rows).item())
        return sum(losses) / len(losses)

    learned = log_lr.exp().tolist()
    constants = [[lr] * J for lr in torch.logspace(-3, 0, 16).tolist()]
    best = min(constants, key=lambda schedule: mean_loss(schedule, val))
    print("learned schedule:", " ".join(f"{lr:.3f}" for lr in learned))
    print(
        f"test loss: learned {mean_loss(learned, test):.4f}, best constant ({best[0]:.3f}) {mean_loss(best, test):.4f}"
    )


if __name__ == "__main__":
    main()
