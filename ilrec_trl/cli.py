"""The `ilrec` command."""
