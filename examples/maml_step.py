"""MAML on Omniglot: learn an initialisation from which a few SGD steps tell new characters apart.

A task shows `--shots` drawings of each of `--ways` characters and asks about other drawings of them. B_0, the gradient
of the query loss with respect to the initialisation, arrives in the .grad of the network's own parameters; the inner
learning rate is learned too, one for each tensor.

    python examples/maml_step.py --data images_background.zip     # needs pillow; about 40 s
"""

import argparse
from pathlib import Path

import omniglot
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import gimli_core as gimli

QUERIES = 10  # drawings of each character to ask about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=omniglot.DEFAULT, help="the published zip file, or an .npz of it")
    parser.add_argument("--outer-steps", type=int, default=150)
    parser.add_argument("--tasks", type=int, default=4, help="tasks in an outer step")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--inner-steps", type=int, default=5)
    options = parser.parse_args()

    torch.manual_seed(0)
    images = omniglot.load(options.data)
    images = images[torch.randperm(len(images))]
    held_out = len(images) // 4  # characters that meta-training never sees
    characters = {"test": images[:held_out], "train": images[held_out:]}

    def draw_task(part):
        """(support images, labels), (query images, labels)."""
        chosen = characters[part][torch.randperm(len(characters[part]))[: options.ways]]
        chosen = chosen[:, torch.randperm(chosen.shape[1])]
        support, query = chosen[:, : options.shots], chosen[:, options.shots : options.shots + QUERIES]
        return tuple(
            (x.flatten(0, 1), torch.arange(options.ways).repeat_interleave(x.shape[1])) for x in (support, query)
        )

    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, stride=2), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, stride=2), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, stride=2), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(128, options.ways),
    )  # fmt: skip

    def loss(theta, phi_loss, batch):
        return cross_entropy(functional_call(network, theta, batch[0]), batch[1])

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD())
    theta_0 = dict(network.named_parameters())
    log_lr = {name: torch.tensor(-2.0, requires_grad=True) for name in theta_0}
    meta_optimizer = torch.optim.Adam([*theta_0.values(), *log_lr.values()], lr=3e-3)

    def query_loss(task):
        support, query = task
        phi_opt = {"lr": {name: value.exp() for name, value in log_lr.items()}}
        return gimli.unroll(
            problem, theta_0, [support] * options.inner_steps, query, phi_opt=phi_opt, with_trajectory=True
        )

    def accuracy():
        """Share of right answers on 100 tasks of held-out characters, before and after the inner steps."""
        before, after = [], []
        for _ in range(100):
            task = draw_task("test")
            _, trajectory = query_loss(task)
            for theta, shares in ((theta_0, before), (trajectory.theta_J, after)):
                guesses = functional_call(network, theta, task[1][0]).argmax(1)
                shares.append((guesses == task[1][1]).float().mean().item())
        return f"{sum(before) / 100:.1%} before and {sum(after) / 100:.1%} after {options.inner_steps} inner steps"

    print(f"{len(images) - held_out} characters to learn from, {held_out} held out")
    print(f"accuracy on held-out characters, untrained: {accuracy()}")
    for step in range(options.outer_steps):
        meta_optimizer.zero_grad()
        losses = []
        for _ in range(options.tasks):
            met, _ = query_loss(draw_task("train"))
            (met / options.tasks).backward()
            losses.append(met.item())
        meta_optimizer.step()
        if step % 10 == 0:
            print(f"outer step {step:3}: query loss {sum(losses) / len(losses):.3f}")
    print(f"accuracy on held-out characters, trained: {accuracy()}")


if __name__ == "__main__":
    main()
