"""How documents become a source of tokens that runs can read."""
