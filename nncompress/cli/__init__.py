"""The commands: each reads its words, calls what does the work, and writes what came of it."""
