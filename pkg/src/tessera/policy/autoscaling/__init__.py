"""How many instances of which variant a model has: replicate, upgrade or downgrade, by cost."""
