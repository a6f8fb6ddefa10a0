"""Sampling with vLLM: the sampler, its engine, and what runs inside vLLM's processes (`worker`)."""
