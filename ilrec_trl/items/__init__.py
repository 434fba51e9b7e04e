"""What the LLM can recommend."""
