"""Training: settings, one step, a run, several runs."""
