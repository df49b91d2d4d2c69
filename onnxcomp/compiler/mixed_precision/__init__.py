"""Mixed precision: site sensitivity and the search for what falls back to float."""
