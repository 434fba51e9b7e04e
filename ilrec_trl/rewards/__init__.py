"""Collaborative filtering: SASRec and the item scores that regularise the language model."""
