"""Training: the tiny base, supervised fine-tuning and outcome RL."""

from unireason_lib.training.memory import limit_routines

limit_routines()
