"""The policy: load and freeze, packed forward, selected head, image cache, KL anchor."""
