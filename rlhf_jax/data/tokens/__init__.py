"""Text as token ids, with what is learned marked: tokenizers, templates and chats, encoding."""
