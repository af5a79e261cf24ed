"""Several runs compared, or one foretold: sweeps, range tests, probes, figures, reports."""
