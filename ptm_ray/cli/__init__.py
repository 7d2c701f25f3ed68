"""The commands. Settings are imported at module level, everything heavy inside a command, so that help is instant."""
