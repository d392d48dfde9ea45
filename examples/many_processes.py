"""MAML on Omniglot over several processes: each runs its share of the tasks, and all get the same gradient.

One argument makes the difference, mesh="tasks". Each process has the whole program: it draws all tasks from the same
seed, and after `backward()` the gradients of the initialisation and of the learning rates are in .grad on every one,
the same bits for any number of processes. Only the first prints.

    torchrun --nproc-per-node 2 many_processes.py --data images_background.zip     # needs pillow; a minute or two

Without torchrun it is one process, and the result is the same.
"""

import argparse
import os
import time
from pathlib import Path

import omniglot
import torch
from torch import distributed
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

import gimli_core as gimli

QUERIES = 10  # drawings of each character to ask about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=omniglot.DEFAULT, help="the published zip file, or an .npz of it")
    parser.add_argument("--outer-steps", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=8, help="tasks in an outer step")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--inner-steps", type=int, default=5)
    parser.add_argument("--test-tasks", type=int, default=200)
    options = parser.parse_args()

    alone = {} if "RANK" in os.environ else {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    distributed.init_process_group("gloo", **alone)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    torch.set_num_threads(1)  # processes that share a machine share its cores

    def say(text):
        if rank == 0:
            print(text, flush=True)

    torch.manual_seed(0)  # the same on every process, so that all draw the same tasks
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
            tasks.append((chosen[:, :1], chosen[:, 1 : 1 + QUERIES]))
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

    def query_loss(episodes, **more):
        """The mean loss of all tasks after their inner steps."""
        support, query = episodes
        lr = {name: value.exp() for name, value in log_lr.items()}
        return gimli.unroll(
            problem, theta_0, lambda j: support, query, steps=options.inner_steps, phi_opt={"lr": lr}, **more
        )

    def accuracy():
        """Share of right answers after the inner steps: each process tries some of the tasks, and counts are summed."""
        (x, y), (x_query, y_query) = draw("test", options.test_tasks)
        mine = slice(rank * options.test_tasks // size, (rank + 1) * options.test_tasks // size)
        episodes = (x[mine], y[mine]), (x_query[mine], y_query[mine])
        _, trajectory = query_loss(episodes, tasks=len(y[mine]), with_trajectory=True)
        logits = vmap(lambda theta, x: functional_call(network, theta, x))(trajectory.theta_J, x_query[mine])
        right = (logits.argmax(2) == y_query[mine]).sum()
        distributed.all_reduce(right)
        return right.item() / y_query.numel()

    say(f"{size} processes; {len(images) - held_out} characters to learn from, {held_out} held out")
    say(f"accuracy on held-out characters, untrained: {accuracy():.1%}")
    start = time.perf_counter()
    for step in range(options.outer_steps):
        meta_optimizer.zero_grad()
        mean = query_loss(draw("train", options.tasks), tasks=gimli.Tasks(options.tasks, chunk=4), mesh="tasks")
        mean.backward()  # .grad is there on every process: every one makes the same outer step
        meta_optimizer.step()
        if step % 10 == 0:
            say(f"outer step {step:3}: query loss {mean.item():.3f}")
    seconds = (time.perf_counter() - start) / options.outer_steps
    say(f"{options.tasks} tasks of {options.inner_steps} steps: {1e3 * seconds:.0f} ms an outer step")
    say(f"accuracy on held-out characters, trained: {accuracy():.1%}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
