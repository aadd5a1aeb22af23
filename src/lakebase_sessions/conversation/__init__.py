"""What a conversation is: its id and user, items, history, the session, the atomic turn."""
