"""Compares several runs, or predicts one: sweeps, range tests, probes, figures, reports."""
