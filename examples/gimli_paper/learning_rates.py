"""GIMLI's experiment 5.1: a learning rate for each tensor of a DenseNet-BC, learned while it is trained on CIFAR-10.

Three trainings by an ordinary `torch.optim.SGD` are compared, as in Figure 1 (Grefenstette et al. 2019):

    fixed          the rate is 0.1 in all epochs
    annealed       divided by 10 after a half and again after three quarters of the epochs
    meta-learned   a rate for each parameter group (299 at depth 100), all from 0.1. One percent of the images is held
                   out, and after each epoch 15 steps of SGD are unrolled from where the training stands; a step of
                   Adam on the rates follows their exact gradient of the loss on 10 held-out batches. The training
                   itself goes on from where it was.

    python examples/gimli_paper/learning_rates.py --quick            # two cores, a few minutes
    python examples/gimli_paper/learning_rates.py --device cuda      # the paper's settings: days

A run that was killed goes on after its last whole epoch. Written to --out: figure_1.png, figure_1.csv.
"""

import argparse
import csv
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy, pad

import gimli_core as gimli
from gimli_core.few_shot.networks import densenet_bc

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10.npz"
WHERE = """CIFAR-10 was not found at {path}.
Fetch it from https://www.cs.toronto.edu/~kriz/cifar.html and save it with np.savez as train_images [n, 32, 32, 3]
(uint8), train_labels [n], test_images and test_labels; give the file's path with --data."""
VARIANTS = ("fixed", "annealed", "meta-learned")
FIRST_RATE = 0.1


@dataclass(frozen=True)
class Setting:
    """What a run depends on besides its data: the paper's by default."""

    depth: int = 100
    epochs: int = 300
    batch: int = 64
    images: int = 0  # to train on; 0 for all
    seeds: int = 3
    unrolled: int = 15  # J
    meta_batch: int = 16
    val_batches: int = 10
    meta_rate: float = 1e-3  # Adam's default


QUICK = Setting(depth=10, epochs=8, images=2000, seeds=1, meta_rate=1e-2)


def load(path, images):
    """(train, test), each (x [n, 3, 32, 32] with mean 0 and deviation 1 in a channel, y [n])."""
    if not path.is_file():
        raise SystemExit(WHERE.format(path=path))
    with np.load(path) as arrays:
        names = ("train_images", "train_labels", "test_images", "test_labels")
        if missing := [name for name in names if name not in arrays.files]:
            raise SystemExit(f"{path}: expected the arrays {', '.join(names)}; {', '.join(missing)} not there.")
        x, y, test_x, test_y = (torch.from_numpy(arrays[name]) for name in names)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: images or None]
    x, test_x = (each.permute(0, 3, 1, 2).float() / 255 for each in (x[order], test_x))
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return ((x - mean) / deviation, y[order].long()), ((test_x - mean) / deviation, test_y.long())


def moved(x, generator):
    """Each image moved by up to 4 pixels and half of them mirrored, as Huang et al. train on CIFAR-10."""
    padded, size = pad(x, (4, 4, 4, 4)), x.shape[-1]
    corners = torch.randint(9, (len(x), 2), generator=generator).tolist()
    x = torch.stack([image[:, i : i + size, j : j + size] for image, (i, j) in zip(padded, corners, strict=True)])
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


class Training:
    """One of the three, with one seed: an ordinary loop around `torch.optim.SGD`."""

    def __init__(self, variant, seed, setting, data, device):
        torch.manual_seed(seed)
        self.variant, self.seed, self.setting, self.device = variant, seed, setting, device
        self.train, self.test = data
        self.model = densenet_bc(10, depth=setting.depth).to(device)
        groups = [{"params": [parameter]} for parameter in self.model.parameters()]
        self.sgd = torch.optim.SGD(groups, lr=FIRST_RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)
        self.history = []  # of each epoch: test accuracy in percent, and the rates
        if variant == "meta-learned":
            held_out = max(len(self.train[1]) // 100, 2)
            order = torch.randperm(len(self.train[1]), generator=torch.Generator().manual_seed(seed))
            self.val = tuple(each[order[:held_out]] for each in self.train)
            self.train = tuple(each[order[held_out:]] for each in self.train)
            # In the unrolled steps batches are normalised by themselves. A twin without running statistics does it,
            # so that those of the training are not touched.
            twin = densenet_bc(10, depth=setting.depth, statistics="batch").to(device)

            def loss(theta, phi, batch):
                return cross_entropy(functional_call(twin, theta, batch[0]), batch[1])

            def mean_loss(theta, phi, batches):
                return torch.stack([loss(theta, phi, batch) for batch in batches]).mean()

            rule = gimli.optimizers.from_torch(self.sgd, self.model.named_parameters()).optimizer
            self.problem = gimli.Problem(loss, mean_loss, rule)
            self.rates = torch.full((len(groups),), FIRST_RATE, requires_grad=True)
            self.adam = torch.optim.Adam([self.rates], lr=setting.meta_rate)

    def run(self, path):
        """Take the epochs that are left, and note each; the history."""
        self.take_up(path)
        for epoch in range(len(self.history), self.setting.epochs):
            generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
            if self.variant == "annealed":
                drops = (epoch >= self.setting.epochs // 2) + (epoch >= self.setting.epochs * 3 // 4)
                self.set_rates([FIRST_RATE / 10**drops] * len(self.sgd.param_groups))
            self.model.train()
            for x, y in self.batches(self.train, self.setting.batch, generator):
                self.sgd.zero_grad()
                cross_entropy(self.model(x), y).backward()
                self.sgd.step()
            if self.variant == "meta-learned":
                self.meta_step(generator)
            rates = [group["lr"] for group in self.sgd.param_groups]
            self.history.append({"accuracy": self.accuracy(), "rates": rates})
            print(
                f"{self.variant}, seed {self.seed}, epoch {epoch + 1} of {self.setting.epochs}: "
                f"test accuracy {self.history[-1]['accuracy']:.2f} %, rates {min(rates):.4f} to {max(rates):.4f}",
                flush=True,
            )
            self.save(path)
        return self.history

    def batches(self, rows, size, generator):
        """All rows once, in random order; a rest that batch norm could not normalise well is left for another epoch."""
        order = torch.randperm(len(rows[1]), generator=generator)
        for chosen in order.split(size):
            if len(chosen) == min(size, len(order)):
                yield moved(rows[0][chosen], generator).to(self.device), rows[1][chosen].to(self.device)

    def meta_step(self, generator):
        """Lines 2-16 of Algorithm 1 from where the training stands, momentum included."""
        J, size = self.setting.unrolled, self.setting.meta_batch
        _, theta_0, state_0 = gimli.optimizers.from_torch(self.sgd, self.model.named_parameters())
        result = gimli.meta_gradient(
            self.problem,
            theta_0,
            self.some(self.train, J, size, generator),
            self.some(self.val, self.setting.val_batches, size, generator),
            phi_opt={"lr": self.rates},
            state_0=state_0,
            memory=gimli.memory.StoreStates(),  # J states and one graph; at depth 100 J graphs are tens of GiB
            compile=False,
        )
        self.rates.grad = result.A_opt["lr"].to(self.rates)
        self.adam.step()
        with torch.no_grad():
            self.rates.clamp_(min=0)  # Adam knows nothing of the least rate there is
        self.set_rates(self.rates.tolist())

    def some(self, rows, count, size, generator):
        """So many batches, drawn with replacement where there are too few rows."""
        drawn = torch.randint(len(rows[1]), (count, size), generator=generator)
        return [(rows[0][i].to(self.device), rows[1][i].to(self.device)) for i in drawn]

    def set_rates(self, rates):
        for group, rate in zip(self.sgd.param_groups, rates, strict=True):
            group["lr"] = rate

    def accuracy(self):
        """On the test images, in percent."""
        self.model.eval()
        with torch.no_grad():
            answers = torch.cat([self.model(x.to(self.device)).argmax(1).cpu() for x in self.test[0].split(500)])
        return 100 * (answers == self.test[1]).double().mean().item()

    def state(self):
        meta = {"rates": self.rates.detach(), "adam": self.adam.state_dict()} if self.variant == VARIANTS[2] else {}
        said = json.dumps(asdict(self.setting))
        return {"said": said, "model": self.model.state_dict(), "sgd": self.sgd.state_dict(), **meta,
                "history": self.history}  # fmt: skip

    def save(self, path):
        """Whole or not at all: a kill leaves the last epoch's file."""
        torch.save(self.state(), path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def take_up(self, path):
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["said"] != json.dumps(asdict(self.setting)):
            raise SystemExit(f"{path} is of other settings: {state['said']}. Remove it, or give another --out.")
        self.model.load_state_dict(state["model"])
        self.sgd.load_state_dict(state["sgd"])
        self.history = state["history"]
        if self.variant == "meta-learned":
            with torch.no_grad():
                self.rates.copy_(state["rates"])
            self.adam.load_state_dict(state["adam"])


def figure(histories, out):
    """Figure 1: test accuracy over epochs, mean and deviation over seeds; beside it the learned rates of seed 0."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    with open(out / "figure_1.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["variant", "epoch", "test accuracy, %", "deviation over seeds"])
        for variant, of_seeds in histories.items():
            accuracy = np.array([[epoch["accuracy"] for epoch in history] for history in of_seeds])
            mean, deviation, epochs = accuracy.mean(0), accuracy.std(0), np.arange(1, accuracy.shape[1] + 1)
            left.plot(epochs, mean, label=variant)
            left.fill_between(epochs, mean - deviation, mean + deviation, alpha=0.2)
            table.writerows(
                [variant, epoch, f"{a:.3f}", f"{b:.3f}"] for epoch, a, b in zip(epochs, mean, deviation, strict=True)
            )
    left.set(xlabel="epoch", ylabel="test accuracy, %", title="DenseNet-BC (k = 12) on CIFAR-10")
    left.legend()
    rates = np.array([epoch["rates"] for epoch in histories["meta-learned"][0]])
    right.plot(np.arange(1, len(rates) + 1), rates, linewidth=0.6, color="C2", alpha=0.5)
    right.set(xlabel="epoch", ylabel="rate", title=f"the {rates.shape[1]} learned rates")
    drawn.savefig(out / "figure_1.png", dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shrunk for two cores, as is printed")
    parser.add_argument("--data", type=Path, default=DEFAULT, help="an .npz of CIFAR-10 (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gimli_learning_rates"), help="%(default)s")
    parser.add_argument("--device", default="cpu")
    for name in ("depth", "epochs", "images", "seeds", "unrolled"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    asked = {name: value for name, value in vars(options).items() if name in asdict(QUICK) and value is not None}
    setting = replace(QUICK if options.quick else Setting(), **asked)
    for name, value in asdict(setting).items():
        if value != (paper := getattr(Setting(), name)):
            print(f"not the paper's: {name} {value or 'all'} (the paper: {paper or 'all'})")
    data = load(options.data, setting.images)
    print(f"{len(data[0][1])} images to train on, {len(data[1][1])} to test (the paper: 50000 and 10000)")
    options.out.mkdir(parents=True, exist_ok=True)
    histories = {variant: [] for variant in VARIANTS}
    for seed in range(setting.seeds):
        for variant in VARIANTS:
            training = Training(variant, seed, setting, data, options.device)
            histories[variant].append(training.run(options.out / f"{variant}_{seed}.pt"))
    figure(histories, options.out)
    for variant, of_seeds in histories.items():
        last = [history[-1]["accuracy"] for history in of_seeds]
        print(f"{variant}: test accuracy {np.mean(last):.2f} % after the last epoch, mean of {len(last)} seeds")
    print(f"written: {options.out / 'figure_1.png'}, {options.out / 'figure_1.csv'}")


if __name__ == "__main__":
    main()
