"""What the template trains on here: digits' shape, drawn at random, so that nothing is downloaded."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class Images(LightningDataModule):
    def __init__(self, batch_size: int = 64, **_of_mnist: object) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        digits = TensorDataset(torch.rand(256, 1, 28, 28), torch.randint(10, (256,)))
        return DataLoader(digits, self.batch_size)

    val_dataloader = train_dataloader
