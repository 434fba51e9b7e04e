"""From raw interactions to splits and prompt-completion data sets."""
