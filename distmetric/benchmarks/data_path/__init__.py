"""Images per second of the loader, beside what reading, decoding and augmenting cost alone."""
