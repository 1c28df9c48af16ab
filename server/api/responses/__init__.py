"""OpenAI's Responses: requests read as chats, answers written as items and events."""
