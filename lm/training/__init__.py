"""`lm fit` and `lm validate`: the settings, the LightningModule, its data, callbacks and recovery."""
