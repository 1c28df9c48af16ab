"""Anthropic's Messages: requests read as chats, answers written as blocks of content, errors in their shape."""
