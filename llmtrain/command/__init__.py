"""What the command does around a run: help, config files, completion, sweeps, run directories; no torch."""
