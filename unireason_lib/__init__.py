"""UniReason-Lab: learn, run and extend grounded reasoning over medical images and volumes."""

__version__ = "0.1.0"
