"""The documentation's page about the Hub, executed as it stands against the double."""

from __future__ import annotations

import re

from hub_client import HIDE_PACKAGE, ROOT
from hub_state import User
from pico_zoo import save_pico_gene

PAGE = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")


def section_snippets(heading: str) -> list[str]:
    """The Python blocks of one section of the page."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/publish.md has no section {heading!r}"
    return re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)


def test_what_the_page_publishes_can_be_used_as_it_says(hub, client):
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


def test_the_commands_that_the_page_names_exist(client):
    commands = re.findall(r"python -m upload (\w+)", PAGE)
    assert set(commands) == {"publish", "verify", "lint"}
    for command in sorted(set(commands)):
        assert client.start(["-m", "upload", command, "--help"]).returncode == 0
