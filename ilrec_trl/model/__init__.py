"""What knows the inside of a transformer: layers, head rows, new tokens, adapters."""
