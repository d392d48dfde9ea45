"""MAML on Omniglot, written as scripts for `higher` are written; only the line that imports it is another one.

    python examples/maml_omniglot_as_for_higher.py [--data PATH] [--epochs 3] [--batches 20] [--width 64] [--seed 1]

Five-way, one-shot: a network of four convolutions with batch normalisation is trained for five steps of SGD on one
drawing of each of five characters, and judged on fifteen more. Its initial weights are learned by Adam, with the exact
gradient through the five steps. Characters of the test have never been seen.

Data: Omniglot (Lake et al. 2015, MIT licence) at 28 by 28, one .npz file with `images` [n, 28, 28] uint8, `character`
[n], and `vinyals_split`, for each character 0 (train) or 2 (test). The originals:
https://github.com/brendenlake/omniglot
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim

import gimli_core.inner_loop as higher

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "omniglot28.npz"


class OmniglotNShot:
    """Episodes of n_way characters, each turned by a right angle or more: k_spt drawings to learn, k_qry to judge."""

    def __init__(self, path, n_way, k_spt, k_qry, task_num, seed):
        if not path.exists():
            raise SystemExit(f"{path} is not there. Pass --data PATH; this file's first lines say what is in it.")
        with np.load(path) as data:
            images, character, split = data["images"], data["character"], data["vinyals_split"]
        order = np.argsort(character, kind="stable")
        images = torch.from_numpy(images[order]).float().div_(255).reshape(len(split), 20, 1, 28, 28)
        self.characters = {"train": images[split == 0], "test": images[split == 2]}
        self.n_way, self.k_spt, self.k_qry, self.task_num = n_way, k_spt, k_qry, task_num
        self.generator = torch.Generator().manual_seed(seed)

    def next(self, mode):
        """x_spt [tasks, n_way·k_spt, 1, 28, 28], y_spt, x_qry, y_qry."""
        tasks = [self._task(self.characters[mode]) for _ in range(self.task_num)]
        return [torch.stack(part) for part in zip(*tasks, strict=True)]

    def _task(self, characters):
        chosen = torch.randperm(len(characters), generator=self.generator)[: self.n_way]
        turns = torch.randint(4, (self.n_way,), generator=self.generator)
        support, query = [], []
        for c, turn in zip(chosen.tolist(), turns.tolist(), strict=True):
            drawings = torch.randperm(20, generator=self.generator)[: self.k_spt + self.k_qry]
            images = torch.rot90(characters[c, drawings], turn, dims=(-2, -1))
            support.append(images[: self.k_spt])
            query.append(images[self.k_spt :])
        labels = torch.arange(self.n_way)
        return (
            torch.cat(support),
            labels.repeat_interleave(self.k_spt),
            torch.cat(query),
            labels.repeat_interleave(self.k_qry),
        )


def network(width, n_way):
    def block(channels):
        return [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width, momentum=1, affine=True),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
        ]

    # 28, 14, 7, 3, 1 pixels wide
    return nn.Sequential(*block(1), *block(width), *block(width), *block(width), nn.Flatten(), nn.Linear(width, n_way))


def train(db, net, meta_opt, epoch, batches):
    net.train()
    losses, accuracies = [], []
    for _ in range(batches):
        x_spt, y_spt, x_qry, y_qry = db.next("train")
        task_num, querysz = x_qry.size(0), x_qry.size(1)
        n_inner_iter = 5
        inner_opt = optim.SGD(net.parameters(), lr=1e-1)

        qry_losses, qry_accs = [], []
        meta_opt.zero_grad()
        for i in range(task_num):
            with higher.innerloop_ctx(net, inner_opt, copy_initial_weights=False) as (fnet, diffopt):
                for _ in range(n_inner_iter):
                    spt_logits = fnet(x_spt[i])
                    spt_loss = F.cross_entropy(spt_logits, y_spt[i])
                    diffopt.step(spt_loss)

                qry_logits = fnet(x_qry[i])
                qry_loss = F.cross_entropy(qry_logits, y_qry[i])
                qry_losses.append(qry_loss.detach())
                qry_accs.append((qry_logits.argmax(dim=1) == y_qry[i]).sum().item() / querysz)
                qry_loss.backward()

        meta_opt.step()
        losses.append(sum(qry_losses).item() / task_num)
        accuracies.append(100.0 * sum(qry_accs) / task_num)
    print(f"[epoch {epoch}] train loss {np.mean(losses):.6f}  accuracy {np.mean(accuracies):.3f} %", flush=True)


def test(db, net, epoch, batches):
    net.train()  # as published: batch statistics, at the test as well
    losses, accuracies = [], []
    for _ in range(batches):
        x_spt, y_spt, x_qry, y_qry = db.next("test")
        n_inner_iter = 5
        inner_opt = optim.SGD(net.parameters(), lr=1e-1)
        for i in range(x_qry.size(0)):
            with higher.innerloop_ctx(net, inner_opt, track_higher_grads=False) as (fnet, diffopt):
                for _ in range(n_inner_iter):
                    spt_loss = F.cross_entropy(fnet(x_spt[i]), y_spt[i])
                    diffopt.step(spt_loss)

                qry_logits = fnet(x_qry[i]).detach()
                losses.append(F.cross_entropy(qry_logits, y_qry[i]).item())
                accuracies.append(100.0 * (qry_logits.argmax(dim=1) == y_qry[i]).float().mean().item())
    print(f"[epoch {epoch}] test  loss {np.mean(losses):.6f}  accuracy {np.mean(accuracies):.3f} %", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--n_way", type=int, default=5)
    parser.add_argument("--k_spt", type=int, default=1)
    parser.add_argument("--k_qry", type=int, default=15)
    parser.add_argument("--task_num", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    db = OmniglotNShot(args.data, args.n_way, args.k_spt, args.k_qry, args.task_num, args.seed)
    net = network(args.width, args.n_way)
    meta_opt = optim.Adam(net.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        train(db, net, meta_opt, epoch, args.batches)
        test(db, net, epoch, max(1, args.batches // 4))


if __name__ == "__main__":
    main()
