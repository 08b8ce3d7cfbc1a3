"""Names that are attacks: as files and in Markdown they are names."""

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from espnet_l0prune.core.text import LONGEST, file_name, in_markdown, one_line

texts = st.one_of(st.text(), st.text("<>&\"'/.-_ab|`*#[]()\\\n \0", max_size=12))


@given(texts)
@example("x/../../ESCAPED")
@example("..")
@example("")
@example("/etc/passwd")
@example("模" * 300)
@example(".hidden\0.svg")
def test_a_files_name_leads_nowhere(text):
    name = file_name(text)
    assert (Path("folder") / name).parent == Path("folder")
    assert Path(name).name == name
    assert not name.startswith((".", "-"))
    assert "\0" not in name
    assert 0 < len(name.encode()) <= LONGEST
    assert file_name(name) == name


def test_a_files_name_is_the_text_where_it_can_be():
    for name in ("asr_conformer", "losses_a.2", "模型-ä"):
        assert file_name(name) == name
    assert file_name("a/b c") == "a_b_c"


@given(texts)
@example("# a #")
@example("_a_ b_c")
@example("[a](javascript:b)\n# c")
def test_markdown_has_no_other_markup(text):
    line = one_line(text)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(f"# {in_markdown(text)}")
    opened, inline, closed = tokens
    assert (opened.type, closed.type) == ("heading_open", "heading_close")
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    assert "".join(child.content for child in inline.children) == line
    cells = MarkdownIt("gfm-like", {"linkify": False}).parse(
        f"| a | b |\n|---|---|\n| {in_markdown(text)} | end |"
    )
    found = [t.content for t in cells if t.type == "inline"]
    assert len(found) == 4
    assert found[-1] == "end"
