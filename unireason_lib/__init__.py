"""UniReason-Lab: learn, run and extend grounded reasoning over medical images and volumes."""

import logging

__version__ = "0.1.0"

# bitsandbytes tells everybody who imports peft which faster CPU kernel it did not find
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
