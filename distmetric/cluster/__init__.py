"""Everything Ray: fit(config), its session, its workers."""
