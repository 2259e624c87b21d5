"""Whole training steps measured one configuration at a time, each in a process of its own."""
