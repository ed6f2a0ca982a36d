"""The tiny base: a small model that has learnt to see, to box shapes and to choose, and nothing
about the study. :func:`pretrain` makes it from random weights, :func:`measure` tests it."""

# ruff: noqa: F401
from unireason_lib.grounding.tiny import build_tiny

from .exercises import HELD_OUT, STAGES, Exercise, exercise
from .pretraining import Plan, pretrain
from .skills import measure, replies
