"""Conversations for fine-tuning: what they are, how they become tokens, how they are packed."""
