"""From a model to ranked lists and their quality."""
