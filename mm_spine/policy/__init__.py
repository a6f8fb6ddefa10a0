"""The policy: load and freeze, packed forward, selected head, image cache, KL anchor."""

from mm_spine.compat import heal_torchvision

# The modules of this package import transformers, which imports torchvision. This line runs before any of them.
heal_torchvision()
