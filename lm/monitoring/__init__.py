"""What a run reports while it trains: progress, figures, samples, baselines, a forecast."""
