"""Benchmarks of fused_optim against every other implementation that is installed."""
