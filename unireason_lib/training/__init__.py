"""Training: supervised fine-tuning and outcome RL."""

import os

# oneDNN, which multiplies matrices for PyTorch on a CPU, keeps a compiled routine for each of the
# last 1,024 shapes. Replies differ in length, so an RL run would fill gigabytes with them. The
# limit is read at the first multiplication; what the environment says goes first.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
