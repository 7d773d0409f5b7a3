"""The secure sum in a federation: what goes into it, who holds the session, what the opened sum means."""
