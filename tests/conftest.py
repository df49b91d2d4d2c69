"""What pytest leaves alone: the pieces that tests are made of, among them modules that fail when imported."""

collect_ignore = ["support", "plugin/package"]
