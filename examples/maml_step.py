"""MAML on Omniglot: learn an initialisation from which a few SGD steps tell new characters apart.

A task shows `--shots` drawings of each of `--ways` characters and asks about other drawings of them. B_0, the gradient
of the query loss with respect to the initialisation, arrives in the .grad of the network's own parameters; the inner
learning rate is learned too, one for each tensor. All tasks of an outer step run in one vectorised call.

    python examples/maml_step.py --data images_background.zip     # needs pillow; about 40 s
"""

import argparse
from pathlib import Path

import omniglot
import torch
from torch.func import functional_call, vmap
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

    def draw(part, count):
        """`count` tasks: (support images, labels), (query images, labels), each with the tasks in front."""
        tasks = []
        for _ in range(count):
            chosen = characters[part][torch.randperm(len(characters[part]))[: options.ways]]
            chosen = chosen[:, torch.randperm(chosen.shape[1])]
            tasks.append((chosen[:, : options.shots], chosen[:, options.shots : options.shots + QUERIES]))
        stacked = (torch.stack(images) for images in zip(*tasks, strict=True))
        return tuple(
            (x.flatten(1, 2), torch.arange(options.ways).repeat_interleave(x.shape[2]).expand(count, -1))
            for x in stacked
        )

    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(128, options.ways),
    )

    def loss(theta, phi_loss, batch):
        return cross_entropy(functional_call(network, theta, batch[0]), batch[1])

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD())
    theta_0 = dict(network.named_parameters())
    log_lr = {name: torch.tensor(-2.0, requires_grad=True) for name in theta_0}
    meta_optimizer = torch.optim.Adam([*theta_0.values(), *log_lr.values()], lr=3e-3)

    def query_loss(tasks):
        """The mean loss of all tasks after their inner steps, in one vectorised call."""
        support, query = tasks
        return gimli.unroll(
            problem,
            theta_0,
            lambda j: support,
            query,
            steps=options.inner_steps,
            tasks=len(query[1]),
            phi_opt={"lr": {name: value.exp() for name, value in log_lr.items()}},
            with_trajectory=True,
        )

    def accuracy():
        """Share of right answers on 100 tasks of held-out characters, before and after the inner steps."""
        tasks = draw("test", 100)
        images, labels = tasks[1]
        _, trajectory = query_loss(tasks)
        before = functional_call(network, theta_0, images.flatten(0, 1)).argmax(1).view_as(labels)
        after = vmap(lambda theta, x: functional_call(network, theta, x))(trajectory.theta_J, images).argmax(2)
        shares = [(guesses == labels).float().mean().item() for guesses in (before, after)]
        return "{:.1%} before and {:.1%} after {} inner steps".format(*shares, options.inner_steps)

    print(f"{len(images) - held_out} characters to learn from, {held_out} held out")
    print(f"accuracy on held-out characters, untrained: {accuracy()}")
    for step in range(options.outer_steps):
        meta_optimizer.zero_grad()
        loss_of_tasks, _ = query_loss(draw("train", options.tasks))
        loss_of_tasks.backward()
        meta_optimizer.step()
        if step % 10 == 0:
            print(f"outer step {step:3}: query loss {loss_of_tasks.item():.3f}")
    print(f"accuracy on held-out characters, trained: {accuracy()}")


if __name__ == "__main__":
    main()
