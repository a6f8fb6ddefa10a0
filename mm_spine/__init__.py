from mm_spine.compat import heal_torchvision, quiet_environment

quiet_environment()
heal_torchvision()
