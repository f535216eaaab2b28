"""Networks: each takes a batch of inputs and returns logits (N x C)."""
