"""One optimiser step: rows and micro-batches, loss, parity, DeepSpeed, token budget, schedule, report."""
