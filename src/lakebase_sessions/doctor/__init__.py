"""Why a session fails: the way that it goes, walked step by step."""
