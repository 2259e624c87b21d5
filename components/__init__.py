"""Parts of a trainer that know torchtitan, but not Motif."""
