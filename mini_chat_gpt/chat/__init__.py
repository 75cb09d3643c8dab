"""The interactive chat: session, commands, terminal."""
