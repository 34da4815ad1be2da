"""Programs beside the run: plan, parity, benchmarks."""
