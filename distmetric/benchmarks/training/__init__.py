"""Our training beside a bare PyTorch loop, what it spends beside its step, and how long it takes to start."""
