"""The README's sections about the Hub, executed as they stand against the double."""

from __future__ import annotations

import re

from hub_client import HIDE_PACKAGE, ROOT
from hub_state import User
from pico_zoo import save_pico_gene


def section_snippets(heading: str) -> list[str]:
    """The Python blocks of one section of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"README.md has no section {heading!r}"
    return re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)


def test_what_the_readme_publishes_can_be_used_as_it_says(hub, client):
    hub.state.users[hub.OWNER_TOKEN] = User("owner", ("owner", "my-org"))
    save_pico_gene(client.folder / "my-gene", vision_width=128, text_width=64, head_size=32)
    (publish,) = section_snippets("Publish your own gene")
    with_package, without_package = section_snippets("Use one from the Hub")
    client.run(publish)
    assert {"README.md", "modeling_learngene.py", "model-text.safetensors"} <= set(hub.files("my-org/my-gene"))
    sizes = "result = [model.config.vision_config.num_hidden_layers, model.config.vision_config.hidden_size]\n"
    assert client.run(with_package + "assert type(encoder).__module__.startswith('transformers.')\n" + sizes) == [
        3,
        96,
    ]
    assert client.run(HIDE_PACKAGE + without_package + sizes, with_package=False) == [3, 96]


def test_the_commands_that_the_readme_names_exist(client):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Publish your own gene")[1]
    commands = re.findall(r"python -m upload (\w+)", section)
    assert set(commands) == {"publish", "verify", "lint"}
    for command in sorted(set(commands)):
        assert client.start(["-m", "upload", command, "--help"]).returncode == 0
