"""Images and their labels: catalogs, how they are made, and how they are read, split and varied."""
