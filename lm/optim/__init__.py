"""From gradients to better weights, in pure torch: AdamW, Muon, clipping, the schedule."""
