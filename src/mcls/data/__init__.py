"""Data sets, the loader that serves their batches, and augmentation."""
