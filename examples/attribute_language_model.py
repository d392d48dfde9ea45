"""Which paragraphs helped a small language model with which query: weights for every token, through 100 steps of AdamW.

python examples/attribute_language_model.py                     # Python's own help texts; under a minute
python examples/attribute_language_model.py --text FILE         # paragraphs of a text file, parted by empty lines

A transformer of two layers reads characters. Each training window of 64 characters has a weight a character; the scores
are dL/dw of each query's loss through the whole training, exact, within a budget of memory. A paragraph's score is the
sum over its characters: below zero it helped.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import gimli_core as gimli

WINDOW, WIDTH, LAYERS, HEADS, SYMBOLS, BATCH = 64, 64, 2, 4, 128, 8
TOPICS = ("lambda", "if", "while", "for", "try", "with", "import", "class", "slicings", "numbers", "del", "return")


class Block(nn.Module):
    """Attention to what came before, then two dense layers; the normalisations before each, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dense = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        split = self.qkv(self.norm_1(x)).reshape(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k, v = split[0], split[1], split[2]
        before = torch.ones(length, length, dtype=torch.bool).tril()
        attention = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~before, float("-inf")).softmax(3)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.dense(self.norm_2(x))


class Transformer(nn.Module):
    """Logits of the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(WINDOW, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SYMBOLS)

    def forward(self, text: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.symbol(text) + self.place.weight)))


def paragraphs(path: Path | None) -> dict[str, str]:
    """Texts by name, each long enough for three windows, on one line."""
    if path is None:
        texts = {name: topics[name] for name in TOPICS if name in topics}
    else:
        parts = path.read_text(encoding="utf-8").split("\n\n")
        texts = {f"paragraph {number}": part for number, part in enumerate(parts, 1)}
    lines = {name: " ".join(text.encode("ascii", "replace").decode().split()) for name, text in texts.items()}
    return {name: line for name, line in lines.items() if len(line) > 3 * (WINDOW + 1)}


def windows(text: str) -> Tensor:
    """[n, WINDOW + 1] characters."""
    n = len(text) // (WINDOW + 1)
    return torch.tensor([ord(c) for c in text[: n * (WINDOW + 1)]]).reshape(n, WINDOW + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, help="a text file; Python's help topics by default")
    parser.add_argument("--steps", type=int, default=100, help="J (%(default)s)")
    parser.add_argument("--queries", type=int, default=4, help="k (%(default)s)")
    parser.add_argument("--memory", default="400MiB", help="what the run may keep (%(default)s)")
    parser.add_argument("--out", type=Path, help=".npz for the scores [k, N, 64], written query by query")
    options = parser.parse_args()

    texts = paragraphs(options.text)
    if len(texts) < 2:
        parser.error(f"--text: expected two paragraphs of {3 * (WINDOW + 1)} characters at least; got {len(texts)}")
    torch.manual_seed(0)
    model = Transformer()
    cut = {name: windows(text)[:12] for name, text in texts.items()}
    train = torch.cat([w[:-1] for w in cut.values()])  # the last window of a paragraph is a query
    names = [name for name, w in cut.items() for _ in range(len(w) - 1)]
    asked = list(cut)[: options.queries]
    queries = torch.stack([cut[name][-1] for name in asked])

    def losses(theta: dict[str, Tensor], text: Tensor) -> Tensor:
        logits = functional_call(model, theta, (text[:, :-1],))
        return cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none")  # [n, WINDOW]

    problem = gimli.Problem(
        lambda theta, phi, batch: (phi["w"] * losses(theta, batch["text"])).mean(),
        lambda theta, phi, text: losses(theta, text).mean(1),
        gimli.optimizers.AdamW(lr=1e-3),
        modules=[model],
    )
    order = [torch.randperm(len(train))[:BATCH] for _ in range(options.steps)]
    found = gimli.attribution.scores(
        problem,
        {name: v.detach() for name, v in model.named_parameters()},
        [{"text": train[rows], "rows": rows} for rows in order],
        queries,
        phi_loss={"w": gimli.indexed(torch.ones(len(train), WINDOW))},
        memory=gimli.memory.Budget(options.memory),
        resume=options.out,
        at_once=None if options.out is None else 1,
        told=lambda done, k: print(f"scored {done} of {k} queries", flush=True),
    )
    seen = torch.cat(order).bincount(minlength=len(train))
    print(f"{len(train)} windows, of which {int((seen > 0).sum())} were trained on, in {options.steps} steps")
    for q, name in enumerate(asked):
        of_paragraph = dict.fromkeys(texts, 0.0)
        for window, other in enumerate(names):
            of_paragraph[other] += float(found.values[q, window].sum())
        ranked = sorted(of_paragraph, key=of_paragraph.__getitem__)
        best = int(found.values[q].sum(1).argmin())
        print(f"query from {name!r}, loss {float(found.val_loss[q]):.3f}: {as_text(queries[q])!r}")
        print("  helped most: " + ", ".join(f"{other} ({of_paragraph[other]:+.2e})" for other in ranked[:3]))
        print("  helped least: " + ", ".join(f"{other} ({of_paragraph[other]:+.2e})" for other in ranked[:-3:-1]))
        print(f"  best window, from {names[best]!r}: {as_text(train[best])!r}")


def as_text(window: Tensor) -> str:
    return "".join(map(chr, window.tolist()))


if __name__ == "__main__":
    main()
