"""The server: an OpenAI-compatible API and a web page, with continuous batching."""
