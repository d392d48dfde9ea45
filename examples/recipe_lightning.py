"""The same MAML with Lightning: gimli.unroll is the loss of a training step, all else is Lightning's.

python examples/recipe_lightning.py        # needs lightning; about 15 s
"""

import argparse

import lightning
import sines
import torch
from torch.utils.data import DataLoader, Dataset


class Episodes(Dataset):
    """The tasks of each outer step."""

    def __init__(self, sampler, steps: int) -> None:
        self.sampler, self.steps = sampler, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int):
        return self.sampler(step)


class MAML(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = sines.network()
        self.problem = sines.problem(self.network)

    def training_step(self, drawn, step):
        loss = sines.loss_after_adaptation(self.network, self.problem, drawn)
        self.log("loss", loss)
        return loss  # Lightning calls .backward(): lines 8-15 of Algorithm 1

    def validation_step(self, drawn, step):
        self.log("on_new_waves", sines.loss_after_adaptation(self.network, self.problem, drawn), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outer-steps", type=int, default=300)
    options = parser.parse_args()

    trainer = lightning.Trainer(
        max_steps=options.outer_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        inference_mode=False,  # an inner loop needs derivatives in validation too
    )
    train = DataLoader(Episodes(sines.train_tasks, options.outer_steps), batch_size=None)
    test = DataLoader(Episodes(sines.test_tasks, 1), batch_size=None)
    trainer.fit(MAML(), train, test)
    print(f"on 100 new waves {trainer.callback_metrics['on_new_waves'].item():.3f}")


if __name__ == "__main__":
    main()
