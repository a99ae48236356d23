"""Does a training survive: one that goes on for a set time while faults are injected, beside one that is left alone."""
