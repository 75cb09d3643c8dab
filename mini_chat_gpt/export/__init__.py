"""Write models for other programs (transformers, llama.cpp, Ollama), and prove that they give the same answers there."""
