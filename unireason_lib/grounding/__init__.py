"""The grounded interface: a model writes boxes and gets the named regions' image tokens back."""

# ruff: noqa: F401
from unireason_lib.grounding.generate import GroundedGenerator
from unireason_lib.grounding.model import checkpoint_serialization, load_model, load_profile_model
from unireason_lib.grounding.replies import Script, Settings
from unireason_lib.grounding.tiny import build_tiny
from unireason_lib.grounding.trace import GroundedRequest, Pointing, Trace
from unireason_lib.imaging.crops import crop_region
