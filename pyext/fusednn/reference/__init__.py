"""Plain PyTorch definitions: what every compiled kernel is checked against, and what runs where there is none."""
