"""`lm fit` and `lm validate`: settings, LightningModule, data, callbacks, recovery."""
