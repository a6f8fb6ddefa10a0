"""One optimiser step: leaves and micro-batches, loss, parity, DeepSpeed, token budget, schedule, report."""
