"""The page on which a model, its node groups, a cut and what was measured can be looked at."""
