"""Images per second of the loader, beside what planning, reading, decoding and augmenting cost alone."""
