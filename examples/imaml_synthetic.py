"""iMAML on its synthetic problem: learn where many linear regressions should start, without their paths.

Each task is fitted with a pull back to theta_0 (gimli.proximal). At its minimum the derivative by theta_0 is known from
there alone, by one linear solve (gimli.implicit_gradient): any optimizer may have led there, and memory does not grow
with its steps. The table holds it against unrolled, truncated and first-order gradients: both exact ones come together
as the inner loop grows longer, the implicit one sooner.

    python examples/imaml_synthetic.py                   # a few seconds
    python examples/imaml_synthetic.py --out imaml.png   # the picture; needs matplotlib

Source: Rajeswaran, Finn, Kakade and Levine 2019, "Meta-Learning with Implicit Gradients".
"""

import argparse

import torch

import gimli_core as gimli

TASKS, FEATURES, ROWS, STRENGTH = 10, 20, 15, 0.5  # fewer rows than features: a task alone cannot be learned


def squares(theta, phi_loss, batch):
    x, y = batch
    return (x @ theta["w"] - y).square().mean() / 2


def draw_tasks(seed, prior):
    """Regressions whose true weights lie around `prior`: (x, y) to learn from, and (x, y) to validate on."""
    generator = torch.Generator().manual_seed(seed)
    truth = prior + 0.2 * torch.randn(TASKS, FEATURES, generator=generator)
    x = torch.randn(2, TASKS, ROWS, FEATURES, generator=generator)
    y = torch.einsum("stmn,tn->stm", x, truth)
    return (x[0], y[0]), (x[1], y[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outer-steps", type=int, default=40)
    parser.add_argument("--inner-steps", type=int, default=60)
    parser.add_argument("--out", help="draw the comparison to this file")
    options = parser.parse_args()

    torch.set_default_dtype(torch.float64)
    prior = torch.randn(FEATURES, generator=torch.Generator().manual_seed(0))
    theta_0 = {"w": torch.zeros(FEATURES, requires_grad=True)}
    problem = gimli.Problem(squares, squares, gimli.optimizers.SGD(lr=0.2, momentum=0.7))
    problem = gimli.proximal(problem, STRENGTH)

    train, val = draw_tasks(1, prior)
    found = gimli.compare(problem, theta_0, train, val, steps=(3, 10, 30, 100), tasks=TASKS)
    print(found, end="\n\n")
    if options.out:
        found.plot(options.out)

    meta_optimizer = torch.optim.Adam(theta_0.values(), lr=0.1)
    for step in range(options.outer_steps + 1):
        train, val = draw_tasks(100 + step, prior)
        with torch.no_grad():  # forwards only
            _, run = gimli.unroll(
                problem,
                theta_0,
                lambda j, train=train: train,
                val,
                steps=options.inner_steps,
                tasks=TASKS,
                with_trajectory=True,
            )
        result = gimli.implicit_gradient(problem, run.theta_J, train, val, theta_0=theta_0, tasks=TASKS)
        if step % 10 == 0:
            away = (theta_0["w"] - prior).norm().item()
            print(f"outer step {step:3}: validation loss {result.val_loss.item():.4f}, {away:.3f} from the prior")
        theta_0["w"].grad = result.B_0["w"]
        meta_optimizer.step()
    print(result.report)


if __name__ == "__main__":
    main()
