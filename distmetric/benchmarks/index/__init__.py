"""Searches of the whole data set: ours, FAISS without us, pruned mining, and the building of a snapshot."""
