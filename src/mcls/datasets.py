"""The data sets that a configuration may name: functions that return a `mcls.data.types.Dataset`."""

from mcls.data.datasets import blobs, cifar10, fashion_mnist, mnist
from mcls.data.huggingface import huggingface
from mcls.data.image_folder import image_folder, image_table
from mcls.data.tabular import csv_file

__all__ = ["blobs", "cifar10", "csv_file", "fashion_mnist", "huggingface", "image_folder", "image_table", "mnist"]
