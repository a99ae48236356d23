"""Neighbors in the whole data set: search, class balls, exact pruned mining, and snapshots of what an index knew."""
