"""The same MAML with Hugging Face's Accelerate: each process has tasks of its own, and gradients are averaged.

The parameters are used through gimli.unroll, not through the wrapped module's forward: so what DistributedDataParallel
does in its backward hooks is one line here, after `backward`.

    python examples/recipe_accelerate.py       # needs accelerate; about 10 s
    torchrun --nproc_per_node 2 examples/recipe_accelerate.py
"""

import argparse

import sines
import torch
from accelerate import Accelerator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outer-steps", type=int, default=300)
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    network = sines.network().to(accelerator.device)  # the same on every process: it is seeded
    problem = sines.problem(network)
    meta_optimizer = accelerator.prepare(torch.optim.Adam(network.parameters(), lr=1e-3))
    for step in range(options.outer_steps):
        drawn = sines.train_tasks(step * accelerator.num_processes + accelerator.process_index)
        drawn = [tuple(t.to(accelerator.device) for t in part) for part in drawn]
        loss = sines.loss_after_adaptation(network, problem, drawn)
        meta_optimizer.zero_grad()
        accelerator.backward(loss)
        for parameter in network.parameters():
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
        meta_optimizer.step()
        if step % 100 == 0:
            loss = accelerator.reduce(loss.detach(), reduction="mean")
            accelerator.print(f"outer step {step:4}: loss after adaptation {loss.item():.3f}")
    with torch.no_grad():
        drawn = [tuple(t.to(accelerator.device) for t in part) for part in sines.test_tasks(0)]
        loss = sines.loss_after_adaptation(network, problem, drawn)
    accelerator.print(f"on 100 new waves {loss.item():.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
