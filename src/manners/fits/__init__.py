"""Will it fit? What a run keeps in memory, foreseen by parts, measured in two real steps, and what would spare it."""
