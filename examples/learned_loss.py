"""Learn a loss function that copes with wrong labels, on real handwritten digits.

A fixed share of the training labels is replaced at random; a few hundred validation labels are right. The inner loss is
a small network of what the classifier says about each example and its label. The network's weights are phi_loss, and
A_loss tells the outer loop how they should have been for the classifier to do well on the right labels.

    python examples/learned_loss.py                      # needs scikit-learn; about 20 s
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import gimli_core as gimli

BATCH, LR = 64, 0.02


class LearnedLoss(torch.nn.Module):
    """Cross entropy plus a learned function of it and of the classifier's entropy, example by example."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1, bias=False))
        torch.nn.init.zeros_(self.layers[2].weight)  # at first it is the cross entropy

    def forward(self, logits, labels):
        surprise = cross_entropy(logits, labels, reduction="none")
        log_p = logits.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        return (surprise + self.layers(torch.stack([surprise, entropy], 1))[:, 0]).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outer-steps", type=int, default=100)
    parser.add_argument("--inner-steps", type=int, default=40)
    parser.add_argument("--wrong", type=float, default=0.5, help="share of training labels drawn at random")
    options = parser.parse_args()

    torch.manual_seed(0)
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    x, order = (x / 16).float(), torch.randperm(len(y))
    train, val, test = ((x[rows], y[rows]) for rows in order.split([900, 450, 447]))
    wrong = torch.rand(len(train[1])) < options.wrong
    train = (train[0], torch.where(wrong, torch.randint_like(train[1], 10), train[1]))

    def new_classifier() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.SiLU(), torch.nn.Linear(32, 10))

    classifier, learned_loss = new_classifier(), LearnedLoss()

    def train_loss(theta, phi_loss, batch):
        return functional_call(learned_loss, phi_loss, (functional_call(classifier, theta, batch[0]), batch[1]))

    def val_loss(theta, phi_loss, batch):
        return cross_entropy(functional_call(classifier, theta, batch[0]), batch[1])

    def batches(seed):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(train[1]), (options.inner_steps, BATCH), generator=generator)
        return [(train[0][i], train[1][i]) for i in rows]

    problem = gimli.Problem(train_loss, val_loss, gimli.optimizers.Adam(lr=LR))
    phi_loss = dict(learned_loss.named_parameters())
    meta_optimizer = torch.optim.Adam(learned_loss.parameters(), lr=0.01)

    for step in range(options.outer_steps):
        theta_0 = dict(new_classifier().named_parameters())
        met = gimli.unroll(problem, theta_0, batches(step), val, phi_loss=phi_loss)
        meta_optimizer.zero_grad()
        met.backward()
        meta_optimizer.step()
        if step % 10 == 0:
            print(f"outer step {step:3}: validation loss {met.item():.4f}")

    def accuracy(inner_loss):
        """On the test rows, in plain torch.optim.Adam, over the same five new runs for every loss."""
        shares = []
        for seed in range(5):
            torch.manual_seed(seed)
            theta = dict(new_classifier().named_parameters())
            optimizer = torch.optim.Adam(theta.values(), lr=LR)
            for batch in batches(10_000 + seed):
                optimizer.zero_grad()
                inner_loss(theta, phi_loss, batch).backward()
                optimizer.step()
            with torch.no_grad():
                guesses = functional_call(classifier, theta, test[0]).argmax(1)
            shares.append((guesses == test[1]).float().mean().item())
        return sum(shares) / len(shares)

    print(f"test accuracy with {wrong.float().mean():.0%} of training labels drawn at random:")
    print(f"  cross entropy {accuracy(val_loss):.1%}, learned loss {accuracy(train_loss):.1%}")


if __name__ == "__main__":
    main()
