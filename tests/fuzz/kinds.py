"""The kinds of files that are damaged; each is a module of this folder."""

KINDS = (
    "checkpoints",
    "configs",
    "run_folders",
    "imports",
    "foreign_models",
    "hf_tokenizers",
    "templates",
    "caches",
    "chats",
    "data_files",
    "http_bodies",
)
