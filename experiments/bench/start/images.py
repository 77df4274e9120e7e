"""Random images in the shape of MNIST for the template, so that nothing is downloaded."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class Images(LightningDataModule):
    def __init__(self, batch_size: int = 64, **_mnist_options: object) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        digits = TensorDataset(torch.rand(256, 1, 28, 28), torch.randint(10, (256,)))
        return DataLoader(digits, self.batch_size)

    val_dataloader = train_dataloader
