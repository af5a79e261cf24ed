"""What a run says of itself while it trains: progress, figures, samples, baselines, a forecast."""
