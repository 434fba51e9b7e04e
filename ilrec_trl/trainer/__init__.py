"""The method: losses, collator, configuration and trainer."""
