"""Training: the tiny base, supervised fine-tuning and outcome RL."""
