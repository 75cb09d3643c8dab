"""From TinyStories-Instruct records to tasks: parsing, facts about a story, prompts and answers."""
