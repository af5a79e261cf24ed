"""What turns gradients into better weights, in pure torch: AdamW, Muon, gradient clipping, learning-rate schedules."""
