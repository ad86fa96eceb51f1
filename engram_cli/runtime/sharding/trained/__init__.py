"""Rows that learn, distributed over processes: look-up, gradients, bundles, optimiser states."""
