"""Token files served as batches: windows, mixtures, documents, and the LightningDataModule."""
