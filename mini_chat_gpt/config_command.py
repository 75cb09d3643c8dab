"""`mini-chat-gpt config`: print the settings with their descriptions, or check a config file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mini_chat_gpt.config_file import load_config, to_yaml


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Print all settings as a commented YAML file.")
    parser.add_argument("--config", help="check this file and print it with all defaults filled in")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file")
    arguments = parser.parse_intermixed_args(argv)
    changed = arguments.config or arguments.overrides
    print(to_yaml(load_config(arguments.config, arguments.overrides) if changed else None), end="")
    return 0
