"""The feed: units against plain models, scripts and follower against a real Valkey."""
