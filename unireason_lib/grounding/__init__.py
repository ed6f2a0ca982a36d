"""The grounded interface: a model that writes boxes, and gets the boxed region's image tokens back into its reply."""

from unireason_lib.grounding.generate import GroundedGenerator
from unireason_lib.grounding.model import load_model, load_profile_model
from unireason_lib.grounding.replies import Script, Settings
from unireason_lib.grounding.tiny import build_tiny
from unireason_lib.grounding.trace import GroundedRequest, Pointing, Trace
from unireason_lib.imaging.crops import crop_region

__all__ = [
    "GroundedGenerator",
    "GroundedRequest",
    "Pointing",
    "Script",
    "Settings",
    "Trace",
    "build_tiny",
    "crop_region",
    "load_model",
    "load_profile_model",
]
