"""`config.example.toml` is the reference of all settings: it loads, says the defaults, and leaves nothing out."""

from __future__ import annotations

import re
from pathlib import Path

from penstock.settings import Settings, Toolchain, load

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
HOME = {"HOME": "/home/somebody"}


def test_it_says_the_defaults() -> None:
    assert load(EXAMPLE, environ=HOME, overrides={}) == load(Path("/dev/null"), environ=HOME, overrides={})


def test_it_leaves_nothing_out() -> None:
    """Each key stands below a comment, in its section; commented out if its default depends on the environment."""
    sections = dict(re.findall(r"^\[(\w+)\]\n(.*?)(?=^\[|\Z)", EXAMPLE.read_text(), re.MULTILINE | re.DOTALL))
    assert set(sections) == set(Settings.model_fields)
    for section, field in Settings.model_fields.items():
        for key in field.annotation.model_fields:
            above = re.search(rf"((?:^# .*\n)+)^(?:# )?{key} = ", sections[section], re.MULTILINE)
            assert above is not None, f"{section}.{key} is not documented"
            if key.endswith("_seconds"):
                assert "Seconds" in above[1], f"{section}.{key} has no unit"
            if key.endswith("_bytes"):
                assert "Bytes" in above[1], f"{section}.{key} has no unit"


def test_it_tells_the_bounds() -> None:
    text = EXAMPLE.read_text()
    for section, field in Settings.model_fields.items():
        for key, each in field.annotation.model_fields.items():
            for bound in each.metadata:
                for kind in ("ge", "le"):
                    value = getattr(bound, kind, None)
                    if value is not None:
                        above = text[: re.search(rf"^{key} = ", text, re.MULTILINE).start()].rpartition("\n\n")[2]
                        assert re.search(rf"\b{value:.0f}\b", above), f"{section}.{key}: {value} is not told"


def test_its_toolchains_work(tmp_path: Path) -> None:
    """The operator's examples, their comment signs removed."""
    commented = EXAMPLE.read_text().partition("# Programs that are opaque")[2]
    lines = [line.removeprefix("# ") for line in commented.splitlines() if re.match(r"# (\[|\w+ = )", line)]
    assert len(lines) > 5
    file = tmp_path / "config.toml"
    file.write_text(EXAMPLE.read_text() + "\n".join(lines))
    named = load(file, environ=HOME, overrides={}).toolchains.named
    assert set(named) == {"bash", "c"}
    assert set(named["bash"]) == {"run"}
    assert set(named["c"]) == set(Toolchain.model_fields)
    match = re.search(str(named["c"]["messages"]), "program:3:7: error: no such thing", re.MULTILINE)
    assert match is not None
    assert match.groupdict() == {"line": "3", "column": "7", "severity": "error", "message": "no such thing"}
