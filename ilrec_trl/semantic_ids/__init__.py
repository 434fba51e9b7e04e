"""From texts or vectors to unique codes."""
