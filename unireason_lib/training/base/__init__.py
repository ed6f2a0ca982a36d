"""The tiny base: a small model that has learnt to see, point and choose, and nothing about the study."""
