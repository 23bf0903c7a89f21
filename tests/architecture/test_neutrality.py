"""Core knows no plugin by name.

What counts: a plugin's name (its folder in plugins/ without ``art-``) as a whole word, in code, strings, comments and
docstrings alike, in any case, and the plugin's import name ``art_<name>``. What does not: a longer word that contains
it, such as an option or a class that users of `art` already type. Those name a setting, not a plugin; nothing is
looked up by them.
"""

from __future__ import annotations

import re

from tests.architecture.source import CORE, ROOT, name, python_files

USERS_KNOW: dict[str, str] = {
    'raise ConfigError("Shared-GPU mode requires engine_args.enable_sleep_mode=True for the external vLLM runtime")': (
        "programs and their tests look for this text as it is; nothing is looked up by the name in it"
    ),
}
"""Lines of art_core that name a plugin all the same, and why."""


def plugin_names() -> list[str]:
    return sorted(path.parent.name.removeprefix("art-") for path in (ROOT / "plugins").glob("art-*/pyproject.toml"))


def mentions(text: str, plugins: list[str]) -> list[tuple[int, str]]:
    """Line number and line of every mention."""
    word = re.compile(rf"(?<!\w)(art_)?({'|'.join(map(re.escape, plugins))})(?!\w)", re.IGNORECASE)
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if word.search(line)]


def test_no_plugin_is_named_in_core() -> None:
    plugins = plugin_names()
    assert "torch" in plugins
    every = [
        (line, f"{name(path)}:{number}: {line}")
        for path in python_files(CORE)
        for number, line in mentions(path.read_text(encoding="utf-8"), plugins)
    ]
    assert USERS_KNOW.keys() <= {line for line, _ in every}, "an excuse that is no longer needed"
    found = [where for line, where in every if line not in USERS_KNOW]
    assert not found, "art_core names a plugin; ask for a capability or a configured name instead:\n" + "\n".join(found)


def test_what_counts_as_naming_a_plugin() -> None:
    caught = ['engine = "torch"', "# as torch does", "import art_torch.engine", "pip install art-torch", "Torch"]
    passed = ["torchtune", "hosted_torch", "class TorchRuntimeArgs:", "torch_runtime: dict"]
    assert [line for _, line in mentions("\n".join(caught), ["torch"])] == caught
    assert mentions("\n".join(passed), ["torch"]) == []
