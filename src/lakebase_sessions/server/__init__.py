"""What a handler or an app needs: turns, the events of one response, errors as HTTP."""
