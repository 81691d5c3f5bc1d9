"""Layers that take the place of torch.nn's."""
