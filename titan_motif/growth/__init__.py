"""Growing a model: which tensor of the large one is made of which of the small one, and how."""
