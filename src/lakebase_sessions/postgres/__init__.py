"""How a statement gets there: pool, engine, and every SQL statement."""
